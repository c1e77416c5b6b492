"""Export a trained network as a bundle of ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import nn

from anytime_lct.data.batches import Dataset
from anytime_lct.data.loaders import OWN, Parts
from anytime_lct.errors import DataError
from anytime_lct.evaluation import Predictor
from anytime_lct.exits.bundle import ALL, Bundle, Contents
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import NAME, ThresholdTable
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.own import expect_statistics
from anytime_lct.run_folder.paths import UNCHANGED, Changes
from anytime_lct.training.events import Note
from anytime_lct.verbs.analyze import in_memory

if TYPE_CHECKING:
    from anytime_lct.export.quantise import Int8
    from anytime_lct.export.write import Trained


def export(
    run: Path | str | nn.Module,
    out: Path | str,
    contents: Contents = ALL,
    data: Parts | None = None,
    *,
    int8_samples: int | None = None,
    changes: Changes = UNCHANGED,
    force: bool = False,
    report: Callable[[str | Note], object] | None = None,
) -> Bundle:
    """Export a run that has a profile as a bundle folder; return the bundle.

    With `int8_samples`, the graphs are quantised with scales from that many training images, and measured again, which
    needs the data set. `changes` are where the run's data and network are now, if they have moved. A network instead of
    a run is measured first, on the `data` of the same program, as `analyze` takes them. `force` replaces a bundle at
    `out`. `report` is called with every step, and with a Note on what is left out. Raises ProfileError,
    CheckpointError, ExportError and DataError.

    >>> export("runs/digits", "bundles/digits", Contents(exits=(1, 3))).manifest.served  # doctest: +SKIP
    (1, 3)
    >>> export(network, "bundles/own", data={"test": loader}).profile.exits[0].test      # doctest: +SKIP
    """
    from anytime_lct.export.quantise import check  # training processes do not need it
    from anytime_lct.export.write import Trained, write_bundle

    notify = report or (lambda event: None)
    if isinstance(run, nn.Module):
        trained, load_data = _measured(run, data, notify)
    else:
        path, opened_run = Path(run), run_folder.open_run(Path(run), changes)
        profile = run_folder.read_profile(path)
        rules = _rules(path, profile, notify)
        trained = Trained(opened_run.network, opened_run.facts, profile, opened_run.model, rules)
        load_data = opened_run.load_data
    int8 = None
    if int8_samples is not None:
        check(trained.facts)
        int8 = _int8(trained.profile, trained.thresholds, load_data(), int8_samples)
    return write_bundle(trained, Path(out), contents, int8=int8, force=force, progress=notify)


def _measured(
    network: nn.Module, data: Parts | None, notify: Callable[[str | Note], object]
) -> tuple[Trained, Callable[[], Dataset]]:
    """Return a network in memory as it is exported, and its data."""
    from anytime_lct.analysis import measure
    from anytime_lct.export.write import Trained

    network, batches = in_memory(network, data)
    expect_statistics(batches)
    notify("measuring every exit")
    return Trained(network, batches.facts, measure.profile(network, batches, OWN), OWN), lambda: batches


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
    """Return what int8 needs of the data: training images to calibrate on, and how the graphs are measured.

    Data without a training part are calibrated on the validation part; raises DataError where they have neither.
    """
    if not data.num_samples("train") and not data.num_samples("validation"):
        raise DataError("Expected training data to set the scales of int8 on, got a test part alone; add one.")
    from anytime_lct.analysis import measure, threshold_search
    from anytime_lct.export.quantise import Int8

    def inputs() -> Iterator[NDArray[Any]]:
        remaining = samples
        for x, _ in data.batches("train" if data.num_samples("train") else "validation"):
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
