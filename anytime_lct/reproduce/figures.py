"""The figures of an experiment from its run folders: one number a cell and seed, mean and standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytime_lct.exits.profile import Profile
from anytime_lct.reproduce.plan import Cell, Experiment, Kind
from anytime_lct.reproduce.runner import SeededRun
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.run_folder.build import build_network, example_input


@dataclass(frozen=True)
class Figure:
    """A cell filled: `values` by seed, in the experiment's unit; empty while no run is done. `detail` goes to JSON."""

    cell: Cell
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    failed: str = ""
    detail: tuple[dict[str, Any], ...] = ()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation, None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Known = Mapping[tuple[str, str], Mapping[int, tuple[float, dict[str, Any]]]]  # row and column: seed: value, detail


def figures(
    experiment: Experiment, jobs: Sequence[SeededRun], failed: Mapping[str, str], known: Known | None = None
) -> list[Figure]:
    """Read every cell's figures out of the runs that are done, and out of `known` where the runs lie elsewhere."""
    if experiment.kind == "complexity":
        return [Figure(cell, *_counted(cell, jobs)) for cell in experiment.cells]
    found = []
    for cell in experiment.cells:
        of_run = [job for job in jobs if job.run.name == cell.run]
        by_seed = dict((known or {}).get((cell.row, cell.column), {}))
        for job in of_run:
            if job.state() == "done":
                value, detail = READ[experiment.kind](cell, job, jobs)
                if value is not None:
                    by_seed[job.seed] = (value, {**detail, "precision": job.recipe.train.precision})
        seeds = tuple(sorted(by_seed))
        reasons = [failed[job.name] for job in of_run if job.name in failed]
        found.append(
            Figure(
                cell,
                tuple(by_seed[seed][0] for seed in seeds),
                seeds,
                reasons[0] if reasons and not seeds else "",
                tuple(by_seed[seed][1] for seed in seeds),
            )
        )
    return found


def _quality(cell: Cell, job: SeededRun, jobs: Sequence[SeededRun]) -> tuple[float | None, dict[str, Any]]:
    profile = Profile.load(job.folder / run_folder.PROFILE)
    exit_ = cell.exit or profile.num_groups
    quality = profile.exits[exit_ - 1].test
    scale = 100 if profile.metric == "accuracy" else 1
    validation = profile.exits[exit_ - 1].validation
    cost = profile.cost(exit_)
    return scale * quality.value, {
        "validation": None if validation is None else scale * validation.value,
        "test_interval": [scale * quality.low, scale * quality.high],
        "flops": cost.flops,
        "params": cost.params,
        "training_seconds": sum(float(epoch["seconds"]) for epoch in _epochs(job)),
    }


def _memory(cell: Cell, job: SeededRun, jobs: Sequence[SeededRun]) -> tuple[float | None, dict[str, Any]]:
    path = job.folder / run_folder.MEMORY
    peaks = json.loads(path.read_text(encoding="utf-8"))["peak_bytes"] if path.exists() else []
    return (peaks[cell.worker - 1] / 2**20, {}) if cell.worker <= len(peaks) else (None, {})


def _descent(cell: Cell, job: SeededRun, jobs: Sequence[SeededRun]) -> tuple[float | None, dict[str, Any]]:
    rows = [row for row in journal.read(job.folder / run_folder.DESCENT) if row["sigma"][cell.exit - 1] is not None]
    if not rows:
        return None, {}
    sigma = [row["sigma"][cell.exit - 1] for row in rows]
    cosine = [row["cosine"][cell.exit - 1] for row in rows]
    spent = sum(row["seconds"] for row in rows)
    return min(sigma), {
        "measurements": len(rows),
        "not_positive": [row["step"] for row in rows if row["sigma"][cell.exit - 1] <= 0],
        "median_sigma": statistics.median(sigma),
        "median_cosine": statistics.median(cosine),
        "smallest_cosine": min(cosine),
        "seconds": spent,
        "share_of_training": spent / sum(float(epoch["seconds"]) for epoch in _epochs(job)),
        "epochs": [row["epoch"] for row in rows],
        "sigma": sigma,
        "cosine": cosine,
    }


def _time(cell: Cell, job: SeededRun, jobs: Sequence[SeededRun]) -> tuple[float | None, dict[str, Any]]:
    rows = _epochs(job)
    seconds = sum(float(row["seconds"]) for row in rows)
    before = [
        sum(float(row["seconds"]) for row in _epochs(other))
        for other in jobs
        if other.seed == job.seed and other.recipe.train.method == "bp" and other.state() == "done"
        and other.recipe.data == job.recipe.data and other.recipe.model == job.recipe.model
    ]  # fmt: skip
    passed, at = 0.0, []
    for row in rows:
        passed += float(row["seconds"])
        at.append(passed)
    return (seconds / before[0] if before else None), {
        "seconds": at,
        "train_loss": [row["train"]["loss"][-1] for row in rows],
        "validation_loss": [row["validation"]["loss"][-1] for row in rows if row["validation"]["loss"]],
        "workers": job.run.workers,
    }


READ: dict[Kind, Callable[[Cell, SeededRun, Sequence[SeededRun]], tuple[float | None, dict[str, Any]]]] = {
    "quality": _quality,
    "memory": _memory,
    "descent": _descent,
    "time": _time,
}


def _epochs(job: SeededRun) -> list[dict[str, Any]]:
    return journal.read(job.folder / run_folder.METRICS)


def _counted(
    cell: Cell, jobs: Sequence[SeededRun]
) -> tuple[tuple[float, ...], tuple[int, ...], str, tuple[dict[str, Any], ...]]:
    """Count an exit of a network that is built and never trained."""
    from anytime_lct import counting as complexity
    from anytime_lct.reproduce.shapes import facts_of

    job = next(job for job in jobs if job.run.name == cell.run)
    facts = facts_of(job.recipe)
    network = build_network(job.recipe, facts)
    example = example_input(facts, 1)
    groups, critics = complexity.components(list(network.groups), list(network.critics), example)
    own = critics[cell.exit - 1 : cell.exit]
    parts = [*groups[: cell.exit], *own]
    params, flops = sum(part.params for part in parts), sum(part.flops for part in parts)
    detail = {"params": params, "flops": flops}
    if own:
        detail |= {"critic_params": own[0].params, "critic_flops": own[0].flops}
    return (params / 1e6,), (0,), "", (detail,)
