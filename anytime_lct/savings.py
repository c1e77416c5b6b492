"""What exits save: their cost as shares of the main network, the exits that save too little, and settings that help.

No trained weights are needed, so that the same words can be said before training and afterwards.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

from torch import Tensor, nn

from anytime_lct.counting import component_costs
from anytime_lct.critics.places import CriticMakers, choose_exits
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import AnalysisError, CountWarning, CriticError, PartitionError
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import DEFAULT_GROUPS, CriticRecipe, CutRecipe
from anytime_lct.task import TaskName

MOST = 0.9  # an exit that costs a larger share of the main network saves too little
DIGITS = (2, 3)  # of shares in a recipe: rounded up, and more exactly where places are close to each other


def multiply_adds(network: LCTNetwork, example: Tensor) -> tuple[int, ...]:
    """Return the multiply-adds of every sub-model for a sample like those of `example`, the main network's last.

    Returns () where a network on text has no cost per character.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountWarning)
        try:
            groups, critics = component_costs(network.groups, network.critics, example[:1])  # type: ignore[arg-type]
        except AnalysisError:
            return ()
    totals = [sum(cost.flops for cost in groups[:i]) for i in range(1, len(groups) + 1)]
    return (*(total + cost.flops for total, cost in zip(totals, critics, strict=False)), totals[-1])


def shares(costs: Sequence[int]) -> tuple[float, ...]:
    """Return the cost of every exit as a share of the last one's, the main network's.

    >>> shares([30, 70, 100])
    (0.3, 0.7, 1.0)
    """
    return tuple(cost / max(1, costs[-1]) for cost in costs)


def problem(costs: Sequence[int]) -> str:
    """Return which exits save too little, as a sentence, or "" where all save something.

    >>> problem([48, 42, 96, 100])
    'Exit 1 costs more than exit 2 (48.0% and 42.0% of the main network), exit 3 costs 96.0% of the main network.'
    """
    exits = shares(costs)[:-1]
    clauses: list[str] = []
    for number, share in enumerate(exits, start=1):
        deeper = [later for later in range(number + 1, len(exits) + 1) if exits[later - 1] < share]
        if share > MOST:
            clauses.append(f"exit {number} costs {share:.1%} of the main network")
        elif deeper:
            both = f"{share:.1%} and {exits[deeper[0] - 1]:.1%} of the main network"
            clauses.append(f"exit {number} costs more than exit {deeper[0]} ({both})")
    return f"E{', '.join(clauses)[1:]}." if clauses else ""


def warning(
    costs: Sequence[int], model: nn.Module, example: Tensor, cut: CutRecipe, critic: CriticRecipe, task: TaskName
) -> str:
    """Return a line about exits that save too little, with a setting that helps, or "" where all save something.

    `costs` are those of `model`, an uncut network, cut by `cut`. The setting is tried on it, with a batch like
    `example`, before it is named.
    """
    sentence = problem(costs)
    if not sentence:
        return ""
    for flags, (*exits, main) in _remedies(model, example, cut, critic, task):
        if not problem((*exits, main)):
            number = "1 exit" if len(exits) == 1 else f"{len(exits)} exits"
            return f"{sentence} Train with {flags}: {number} at {', '.join(f'{cost / main:.0%}' for cost in exits)}."
    return f"{sentence} No cheaper critics, and no other cuts of this network, change that."


def fewer_groups(cut: CutRecipe, places: Sequence[str]) -> str:
    """Return a line for a network that has fewer places than the default number of groups needs, or ""."""
    if cut.groups is not None or not 0 < len(places) < DEFAULT_GROUPS - 1:
        return ""
    return (
        f"Cut in {len(places) + 1} layer groups instead of {DEFAULT_GROUPS}: this network can only be cut after "
        f"{' and '.join(places)}."
    )


def _remedies(
    model: nn.Module, example: Tensor, cut: CutRecipe, critic: CriticRecipe, task: TaskName
) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield flags that may help, and what exits cost by them: cheaper critics, other cuts, both, then fewer exits."""
    kinds = {"": critic}
    if critic.kind != "slim":
        kinds["--set critic.kind=slim"] = critic.model_copy(update={"kind": "slim"})
    elif critic.depth is not None:
        kinds["--set critic.depth=1"] = critic.model_copy(update={"depth": 1})
    with suppress(PartitionError, CriticError):
        for flag, cheaper in list(kinds.items())[1:]:
            yield flag, multiply_adds(LCTNetwork.cut(model, example, cut, cheaper, task, compare=False), example)
    try:
        trace = Trace.of(model, example)
    except PartitionError:  # it is cut by the names of its children
        return
    makers = {flag: CriticMakers(trace, example, kind, task) for flag, kind in kinds.items()}
    exits = len(cut.places or cut.shares) or (cut.groups or DEFAULT_GROUPS) - 1
    for count in range(min(exits, len(trace.candidates)), 0, -1):
        for flag, maker in makers.items():
            for targets in _targets(maker, count):
                flags = f"--set cut.shares={','.join(f'{share:g}' for share in targets)} {flag}"
                with suppress(PartitionError, CriticError):
                    chosen = choose_exits(maker, targets)
                    yield flags.strip(), [*(choice.cost for choice in chosen), maker.trunks.whole]


def _targets(makers: CriticMakers, count: int) -> Iterator[tuple[float, ...]]:
    """Yield shares of `count` exits: even ones, then those of the exits that come closest to them."""
    even = CutRecipe().targets(count + 1)
    yield tuple(round(share, 2) for share in even)
    with suppress(PartitionError, CriticError):
        closest = choose_exits(makers, even, strict=False)
        for digits in DIGITS:
            share = [math.ceil(choice.cost / makers.trunks.whole * 10**digits) / 10**digits for choice in closest]
            if share == sorted(set(share)) and share[-1] < 1:
                yield tuple(share)
