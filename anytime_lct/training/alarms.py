"""Alarms: what the numbers of a finished epoch say about a run that goes wrong, one line each, with what to try.

An alarm is a function from these numbers to a line, "" where all is well; `raised` calls them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anytime_lct.exits.tasks import TASKS, Task, TaskName

SECOND, THIRD, FIFTH = 2, 3, 5  # epochs after which an alarm makes sense; the last one of a shorter run
FAR_ABOVE, MARGIN = 1.5, 0.5  # times the loss of guessing, and at least so many nats above it
AT_FIRST = 2.0  # times the loss of guessing, before the third epoch: what is a little above it often recovers
SINGLE = 0.99  # share of samples that get the same answer
GAP, RATIO = 0.5, 1.5  # of the loss of guessing, at most a nat: between training and validation; and their ratio
HALF = 0.5  # share of a class from which unequal classes explain a single answer
FEW = 50  # samples with which no accuracy can be told from chance
Z_95 = 1.96  # standard errors on either side of a mean in its 95% interval
APART = "apart"  # the name of the alarm whose line needs another measurement
WIDE = 0.05  # half of an accuracy's interval; for text, as a share of the metric
ENTROPY_MARGIN = 0.04  # below the entropy of symbols, as a share of it


@dataclass(frozen=True)
class Finished:
    """The numbers of a finished epoch: of `epochs`; sequences have one entry an exit, in order.

    The losses of training, and on validation losses, metric, its standard error, and the share of the most frequent
    answer (`evaluation.Tally`), () without a validation split. `labels` counts validation labels by class or symbol, of
    regression all as one; `outputs` is the number of classes or symbols, 0 where it is unknown. `main` says that the
    last entry is the main network's; `rates` names the recipe's learning rates that training follows, `clips` says that
    it clips gradients. `samples` is what samples are called.
    """

    epoch: int
    epochs: int
    task: TaskName
    outputs: int
    train_losses: Sequence[float]
    losses: Sequence[float] = ()
    scores: Sequence[float] = ()
    errors: Sequence[float] = ()
    answers: Sequence[float] = ()
    labels: Sequence[int] = ()
    main: bool = True
    rates: Sequence[str] = ("groups.lr", "critics.lr")
    clips: bool = False
    samples: str = "images"

    @property
    def row(self) -> Task:
        """The row of the task."""
        return TASKS[self.task]

    @property
    def guess(self) -> float:
        """The loss of guessing among all classes or symbols alike, in nats; of regression, that of the mean."""
        if self.row.is_numbers:
            return 1.0
        return math.log(self.outputs) if self.outputs > 1 else math.inf

    @property
    def frequencies(self) -> list[float]:
        """The shares of the classes or symbols that validation has."""
        return [count / sum(self.labels) for count in self.labels if count]

    @property
    def entropy(self) -> float:
        """The loss of answering by these frequencies, in nats, which an input is not needed for."""
        return -sum(share * math.log(share) for share in self.frequencies)

    def has_had(self, epochs: int) -> bool:
        """Whether so many epochs are finished, or all."""
        return self.epoch >= min(epochs, self.epochs)

    def names(self, numbers: Sequence[int]) -> str:
        """Name exits, from 0, as "exit 1, exit 2 and the main network"."""
        last = len(self.train_losses) - 1
        words = ["the main network" if self.main and k == last else f"exit {k + 1}" for k in numbers]
        return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

    def lower_rates(self) -> str:
        """Return the advice to lower the learning rates, as a clause."""
        return f"try a tenth of {' and of '.join(self.rates)}" if self.rates else "try other options of the method"


def raised(numbers: Finished, known: Sequence[str] = ()) -> dict[str, str]:
    """Return the lines of all alarms that ring, by name, except those in `known`.

    `APART` is not among them: its line needs another measurement (`far_apart`, `why_far_apart`). An exit
    is not reported for what follows from its high loss, or from its single answer.
    """
    alarms = {"loss": high_loss, "answer": single_answer, "chance": at_chance, "samples": few_samples}
    lines = {name: alarm(numbers) for name, alarm in alarms.items() if name not in known}
    return {name: line for name, line in lines.items() if line}


def high_loss(numbers: Finished) -> str:
    """Report training losses far above that of guessing."""
    high = _of_high_loss(numbers)
    if not high:
        return ""
    losses = ", ".join(f"{numbers.train_losses[k]:.3g}" for k in high)
    guessing = f"guessing among {numbers.outputs} {numbers.row.outputs}"
    if numbers.row.is_numbers:
        guessing = "the mean target"
    return (
        f"After epoch {numbers.epoch} the training loss of {numbers.names(high)} ({losses}) is far above "
        f"{numbers.guess:.2f}, that of {guessing}: "
        f"{numbers.lower_rates()}{'' if numbers.clips else ', or set train.clip_norm=1'}."
    )


def single_answer(numbers: Finished) -> str:
    """Report exits that answer almost all validation samples alike, where the labels differ."""
    exits = _of_single_answer(numbers)
    if not exits:
        return ""
    what, of = numbers.row.output, numbers.samples
    verb = "answers" if len(exits) == 1 else "answer"
    sentence = f"After epoch {numbers.epoch} {numbers.names(exits)} {verb} one {what} for all {of} of validation"
    if all(numbers.train_losses[k] < numbers.entropy / FAR_ABOVE for k in exits):
        return (
            f"{sentence}, though the training loss is far lower than such answers give: the statistics of batch norms "
            f"may not follow yet; train for more epochs, or in smaller minibatches (data.batch_size)."
        )
    largest, most = max(numbers.frequencies), "most frequent" if numbers.row.is_text else "largest"
    unequal = f", the {most} {what} being {largest:.0%} of them"
    remedy = numbers.lower_rates() if largest < HALF else f"use more {of} of other classes"
    return f"{sentence}{unequal}: {remedy}, or train for more epochs."


def far_apart(numbers: Finished) -> list[int]:
    """Return the exits, from 0, whose validation loss is far above their training loss; those of one answer are not.

    In the first half of a run none is: rates are high, and what is measured in between recovers.
    """
    if not numbers.has_had(max(SECOND, -(-numbers.epochs // 2))):
        return []
    single, gap = _of_single_answer(numbers), min(1.0, GAP * numbers.guess)
    pairs = enumerate(zip(numbers.train_losses, numbers.losses, strict=False))
    return [k for k, (train, other) in pairs if k not in single and other > max(RATIO * train, train + gap)]


def why_far_apart(numbers: Finished, exits: Sequence[int], again: Sequence[float]) -> str:
    """Report `far_apart` exits; `again` are losses on training samples in evaluation mode, () where not measured."""

    def listed(losses: Sequence[float]) -> str:
        return ", ".join(f"{losses[k]:.3g}" for k in exits)

    sentence = (
        f"After epoch {numbers.epoch} the validation loss of {numbers.names(exits)} ({listed(numbers.losses)}) is far "
        f"above the training loss ({listed(numbers.train_losses)})"
    )
    overfitting = "use more data or data.augment, or keep the best epoch with train.keep=best"
    statistics = f"train for more epochs, or {numbers.lower_rates()}"
    if not again:
        return (
            f"{sentence}: if it overfits, {overfitting}; if statistics of batch norms do not follow yet, {statistics}."
        )
    halfway = [(numbers.train_losses[k] + numbers.losses[k]) / 2 for k in exits]
    if sum(again[k] > middle for k, middle in zip(exits, halfway, strict=True)) > len(exits) / 2:
        return (
            f"{sentence}, and so it is on training data in evaluation mode ({listed(again)}): the statistics of batch "
            f"norms do not follow the weights yet; {statistics}."
        )
    return f"{sentence}, but not on training data in evaluation mode ({listed(again)}): it overfits; {overfitting}."


def at_chance(numbers: Finished) -> str:
    """Report exits no better than the most frequent class, the frequencies of symbols, or the mean target.

    Not in the first quarter of a run, of which at most five epochs count: exits often learn late.
    """
    total = sum(numbers.labels)
    begun = max(THIRD, min(FIFTH, -(-numbers.epochs // 4)))
    if not numbers.has_had(begun) or total < FEW or _of_high_loss(numbers):
        return ""
    single, shares = _of_single_answer(numbers), numbers.frequencies
    if numbers.row.metric.of_hits:
        chance = max(shares)
        limit, unit = chance + Z_95 * math.sqrt(chance * (1 - chance) / total), f"the largest class is {chance:.1%}"
        poor = [k for k, score in enumerate(numbers.scores) if score <= limit]
        values = [f"{score:.1%}" for score in numbers.scores]
    elif numbers.row.is_numbers:
        unit = f"the mean target alone has a loss of {numbers.guess:.2f}"
        poor = [k for k, loss in enumerate(numbers.losses) if loss >= (1 - ENTROPY_MARGIN) * numbers.guess]
        values = [f"a loss of {loss:.2f}" for loss in numbers.losses]
    else:
        chance = numbers.entropy / math.log(2)
        unit = f"the frequencies of symbols alone give {chance:.2f} bits"
        poor = [k for k, score in enumerate(numbers.scores) if score >= (1 - ENTROPY_MARGIN) * chance]
        values = [f"{score:.2f} bits" for score in numbers.scores]
    everywhere, poor = len(poor) == len(numbers.scores), [k for k in poor if k not in single]
    if not poor or (len(shares) < 2 and not numbers.row.is_numbers):
        return ""
    scores = ", ".join(values[k] for k in poor)
    remedy = "cut later (cut.shares)"
    if everywhere:
        remedy = (
            "train for more epochs" if numbers.row.is_text else f"check that labels belong to their {numbers.samples}"
        )
    verb = "is" if len(poor) == 1 else "are"
    return (
        f"After epoch {numbers.epoch} {numbers.names(poor)} {verb} no better than chance on validation ({scores}, "
        f"where {unit}): {remedy}, or {numbers.lower_rates()}."
    )


def few_samples(numbers: Finished) -> str:
    """Report, after the last epoch, a validation split with which exits cannot be told apart."""
    if numbers.epoch < numbers.epochs or len(numbers.scores) < 2 or _of_single_answer(numbers):
        return ""
    difference, total = max(numbers.scores) - min(numbers.scores), sum(numbers.labels)
    if numbers.row.metric.of_hits:
        half = max(Z_95 * _error(score, total) for score in numbers.scores)
        wide, what = half > WIDE, f"{total} {numbers.samples}, whose accuracy is known to ± {100 * half:.0f} points"
        apart = f"{100 * difference:.1f} points"
    else:
        half = Z_95 * max(numbers.errors)
        unit, form = ("RMSE", ".2g") if numbers.row.is_numbers else ("bits", ".2f")
        wide = half > WIDE * min(numbers.scores)
        what = f"{total:,} {numbers.samples}, known to ± {half:{form}} {unit}"
        apart = f"{difference:{form}} {unit}"
    if not wide or 2 * half < difference:
        return ""
    return (
        f"The validation split is too small to choose an exit by: {what}, while exits are {apart} apart; use more "
        f"data, or more of it for validation (data.validation)."
    )


def _of_high_loss(numbers: Finished) -> list[int]:
    times = FAR_ABOVE if numbers.has_had(THIRD) else AT_FIRST
    limit = max(times * numbers.guess, numbers.guess + MARGIN)
    return [k for k, loss in enumerate(numbers.train_losses) if loss > limit]


def _of_single_answer(numbers: Finished) -> list[int]:
    if not numbers.has_had(SECOND) or sum(count > 0 for count in numbers.labels) < 2:
        return []
    high = _of_high_loss(numbers)
    return [k for k, share in enumerate(numbers.answers) if share > SINGLE and k not in high]


def _error(accuracy: float, samples: int) -> float:
    """Return the standard error of an accuracy; Agresti and Coull's, so that 100% of 5 samples is no certainty."""
    p = (accuracy * samples + 2) / (samples + 4)
    return math.sqrt(p * (1 - p) / (samples + 4))
