"""Write a trained run as ONNX files that a device can answer with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from anytime_lct.data import datasets
from anytime_lct.data.batches import Dataset
from anytime_lct.evaluation import Answers
from anytime_lct.exits.bundle import ALL, Bundle, Contents
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import NAME, ThresholdTable
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.events import Note

if TYPE_CHECKING:
    from anytime_lct.export.quantise import Int8


def export(
    run: Path | str,
    out: Path | str,
    contents: Contents = ALL,
    *,
    int8_samples: int | None = None,
    data_root: str | None = None,
    force: bool = False,
    report: Callable[[str | Note], object] | None = None,
) -> Bundle:
    """Export a run that has a profile as a bundle folder, and return it opened.

    With `int8_samples`, the graphs are quantised with scales from so many training images, and measured again, which
    takes the data set (in `data_root`, if it has moved). `force` replaces a bundle at `out`. `report` is called with
    every step, and with a Note on what is left out. Raises ProfileError, CheckpointError, ExportError and DataError.

    >>> export("runs/digits", "bundles/digits", Contents(exits=(1, 3))).manifest.served  # doctest: +SKIP
    (1, 3)
    """
    from anytime_lct.export.quantise import check  # training processes need none of it
    from anytime_lct.export.write import Trained, write_bundle

    path, say = Path(run), report or (lambda what: None)
    opened = run_folder.open_run(path)
    profile = run_folder.read_profile(path)
    rules = _rules(path, profile, say)
    trained = Trained(opened.network, opened.facts, profile, opened.recipe.model.name, rules)
    int8 = None
    if int8_samples is not None:
        check(opened.facts)
        int8 = _int8(profile, rules, datasets.from_recipe(opened.recipe, data_root), int8_samples)
    return write_bundle(trained, Path(out), contents, int8=int8, force=force, progress=say)


def _rules(run: Path, profile: Profile, say: Callable[[str | Note], object]) -> ThresholdTable | None:
    """Read the run's rules for stopping; those of other weights stay behind, and that is said."""
    if not (run / NAME).exists():
        return None
    rules = ThresholdTable.load(run / NAME)
    if rules.network == run_folder.fingerprint(run, [exit.temperature for exit in profile.exits]):
        return rules
    say(
        Note(
            f"Leaving out {run / NAME}, which is of other weights or temperatures; search anew with: anytime-lct "
            f"thresholds {run}."
        )
    )
    return None


def _int8(profile: Profile, rules: ThresholdTable | None, data: Dataset, samples: int) -> Int8:
    """Join the run's data to the export: training images to calibrate on, and what measures the int8 graphs."""
    from anytime_lct.analysis import measure, threshold_search
    from anytime_lct.export.quantise import Int8

    def inputs() -> Iterator[NDArray[Any]]:
        left = samples
        for x, _ in data.batches("train"):
            yield x[:left].numpy()
            left -= len(x)
            if left <= 0:
                return

    def measured(answers: Answers, served: tuple[int, ...]) -> tuple[Profile, ThresholdTable | None]:
        judge = measure.judging_answers(answers, data)
        again = measure.measured_again(profile, judge, served, data)
        kept = None if rules is None else rules.of_exits(served)
        if kept is None or not kept.rules:
            return again, None
        temperatures = [again.exits[i - 1].temperature for i in served]
        held_out = threshold_search.watch(judge, "validation", served, temperatures)
        test = threshold_search.watch(judge, "test", served, temperatures)
        searched = [
            threshold_search.search(again, held_out, test, rule.mean_flops, (rule.measure,)) for rule in kept.rules
        ]
        return again, kept.model_copy(update={"rules": tuple(searched)})

    return Int8(inputs(), measured)
