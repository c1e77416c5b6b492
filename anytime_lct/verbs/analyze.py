"""Measure the cost and the quality of every exit of a trained network."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from anytime_lct import disk
from anytime_lct.data.batches import Dataset
from anytime_lct.data.loaders import OWN, LoadedBatches, Parts
from anytime_lct.errors import AnalysisError, DataError
from anytime_lct.exits.profile import Profile, weights_sum
from anytime_lct.network import LCTNetwork
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.run_folder.paths import UNCHANGED, Changes


def analyze(
    run: Path | str | nn.Module,
    data: Parts | None = None,
    *,
    changes: Changes = UNCHANGED,
    html: Path | str | None = None,
) -> Profile:
    """Measure every exit of a run; write profile.json and exits.png, and descent.png where descent was tracked.

    `changes` are where the run's data and network are now, if they have moved. A network instead of a run, with the
    `data` of the same program, is measured without a folder, and nothing is written: `data` is the test part, or
    {"validation": .., "test": .., "classes": ..}. `html` names a file for a page with curve, table, and what each exit
    gets right. Raises CheckpointError, DataError and AnalysisError.

    >>> analyze("runs/digits-resnet-0").exits[0].test.value                            # doctest: +SKIP
    0.9611
    >>> analyze(network, loader).exits[0].test.value                                   # doctest: +SKIP
    """
    from anytime_lct.analysis import measure, picture  # training processes do not need it

    if isinstance(run, nn.Module):
        network, batches = in_memory(run, data)
        profile = measure.profile(network, batches, OWN)
        _write_page(html, profile, network, batches)
        return profile
    if data is not None:
        raise DataError(f"Expected a network with data, got the run '{run}', which has its own; leave data out.")
    path = Path(run)
    opened_run, digest = run_folder.open_run(path, changes), weights_sum(path)
    batches = opened_run.load_data()
    profile = measure.profile(opened_run.network, batches, opened_run.model)
    profile = profile.model_copy(update={"weights": digest})
    profile.save(path / run_folder.PROFILE)
    picture.draw(profile, path / run_folder.PICTURE)
    lines = journal.read(path / run_folder.DESCENT)
    if lines:
        title = f"{profile.model} on {profile.data}: sufficient descent of every layer group"
        picture.draw_descent(lines, path / run_folder.DESCENT_PICTURE, title)
    _write_page(html, profile, opened_run.network, batches)
    return profile


def _write_page(file: Path | str | None, profile: Profile, network: LCTNetwork, data: Dataset) -> None:
    """Answer the test split once more, and write the page; raises AnalysisError where it cannot be written."""
    from anytime_lct.analysis import measure, page
    from anytime_lct.analysis.answers import Recorder

    if file is None:
        return
    row, answers = data.facts.row, None
    if not row.is_text:
        recorder = Recorder([exit.temperature for exit in profile.exits], numbers=row.is_numbers)
        measure.network_evaluator(network, data)("test", recorder)
        answers = recorder.answers()
    disk.write(Path(file), page.page(profile, data.facts, answers), AnalysisError)


def in_memory(network: nn.Module, data: Parts | None) -> tuple[LCTNetwork, LoadedBatches]:
    """Return a network, a copy on the CPU, and the data that measures it; a network that is not cut has one exit.

    Raises DataError for data without a test part.
    """
    network = network if isinstance(network, LCTNetwork) else LCTNetwork([network], [])
    batches = LoadedBatches(() if data is None else data, "test")
    if not batches.num_batches("test"):
        raise DataError('Expected data to measure the network on, got no test part; pass a loader, or {"test": ..}.')
    return copy.deepcopy(network).cpu().eval(), batches.described(network)


def savings_warning(run: Path | str, profile: Profile, changes: Changes = UNCHANGED) -> str:
    """Return a line about the exits of a run that save too little, and what helps (`savings.warning`), or ""."""
    from anytime_lct.training.prepare import warning_on_exits

    recipe, facts = run_folder.read(Path(run), changes)
    return warning_on_exits(recipe, [profile.cost(i).flops for i in range(1, profile.num_groups + 1)], facts)
