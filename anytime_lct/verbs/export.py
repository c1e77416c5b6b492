"""Export a trained run as a bundle of ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from anytime_lct.data.batches import Dataset
from anytime_lct.evaluation import Predictor
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
    model: str | None = None,
    force: bool = False,
    report: Callable[[str | Note], object] | None = None,
) -> Bundle:
    """Export a run that has a profile as a bundle folder; return the bundle.

    With `int8_samples`, the graphs are quantised with scales from that many training images, and measured again, which
    needs the data set (in `data_root`, if it has moved). `model` names the network, path/to/file.py:FACTORY, where the
    run's copy of its file cannot be used. `force` replaces a bundle at `out`. `report` is called with every step, and
    with a Note on what is left out. Raises ProfileError, CheckpointError, ExportError and DataError.

    >>> export("runs/digits", "bundles/digits", Contents(exits=(1, 3))).manifest.served  # doctest: +SKIP
    (1, 3)
    """
    from anytime_lct.export.quantise import check  # training processes do not need it
    from anytime_lct.export.write import Trained, write_bundle

    path, notify = Path(run), report or (lambda event: None)
    opened_run = run_folder.open_run(path, model)
    profile = run_folder.read_profile(path)
    rules = _rules(path, profile, notify)
    trained = Trained(opened_run.network, opened_run.facts, profile, opened_run.model, rules)
    int8 = None
    if int8_samples is not None:
        check(opened_run.facts)
        int8 = _int8(profile, rules, opened_run.load_data(data_root), int8_samples)
    return write_bundle(trained, Path(out), contents, int8=int8, force=force, progress=notify)


def _rules(run: Path, profile: Profile, notify: Callable[[str | Note], object]) -> ThresholdTable | None:
    """Read the run's rules for stopping; those of other weights are left out, with a Note."""
    if not (run / NAME).exists():
        return None
    rules = ThresholdTable.load(run / NAME)
    if rules.network == run_folder.fingerprint(run, [exit.temperature for exit in profile.exits]):
        return rules
    notify(
        Note(
            f"Leaving out {run / NAME}, which belongs to other weights or temperatures; search again with: anytime-lct "
            f"thresholds {run}."
        )
    )
    return None


def _int8(profile: Profile, rules: ThresholdTable | None, data: Dataset, samples: int) -> Int8:
    """Return what int8 needs of the run's data: training images to calibrate on, and how the graphs are measured."""
    from anytime_lct.analysis import measure, threshold_search
    from anytime_lct.export.quantise import Int8

    def inputs() -> Iterator[NDArray[Any]]:
        remaining = samples
        for x, _ in data.batches("train"):
            yield x[:remaining].numpy()
            remaining -= len(x)
            if remaining <= 0:
                return

    def measure_graphs(predictor: Predictor, served: tuple[int, ...]) -> tuple[Profile, ThresholdTable | None]:
        evaluator = measure.predictor_evaluator(predictor, data)
        int8_profile = measure.remeasure(profile, evaluator, served, data)
        table = None if rules is None else rules.of_exits(served)
        if table is None or not table.rules:
            return int8_profile, None
        temperatures = [int8_profile.exits[i - 1].temperature for i in served]
        held_out = threshold_search.collect(evaluator, "validation", served, temperatures)
        test = threshold_search.collect(evaluator, "test", served, temperatures)
        new_rules = [
            threshold_search.search(int8_profile, held_out, test, rule.mean_flops, (rule.measure,))
            for rule in table.rules
        ]
        return int8_profile, table.model_copy(update={"rules": tuple(new_rules)})

    return Int8(inputs(), measure_graphs)
