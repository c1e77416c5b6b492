"""The figures of an experiment from its run folders: one number per cell and seed, mean and standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from anytime_lct.counting import component_costs
from anytime_lct.exits import thresholds
from anytime_lct.exits.profile import Cost, Profile
from anytime_lct.exits.thresholds import ThresholdTable
from anytime_lct.recipes import reading
from anytime_lct.reproduce.columns import column_profile
from anytime_lct.reproduce.plan import Cell, Experiment, Kind
from anytime_lct.reproduce.runner import SeededRun
from anytime_lct.reproduce.shapes import facts_of
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.run_folder.build import build_network, example_input
from anytime_lct.training.methods.table import row_of

NOTHING = Cost(flops=0, params=0)


@dataclass(frozen=True)
class Figure:
    """The `values` of a cell by seed, in the experiment's unit; empty if no run is done. `detail` is for the JSON."""

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


KnownValues = Mapping[tuple[str, str], Mapping[int, tuple[float, dict[str, Any]]]]  # [row, column][seed]: value, detail


def figures(
    experiment: Experiment, jobs: Sequence[SeededRun], failed: Mapping[str, str], known: KnownValues | None = None
) -> list[Figure]:
    """Read every cell's figure from the runs that are done, or from `known` for runs that are not in this folder."""
    if experiment.kind == "complexity":
        return [Figure(cell, *_count(cell, jobs)) for cell in experiment.cells]
    filled: list[Figure] = []
    counts: dict[str, list[Cost]] = {}
    for cell in experiment.cells:
        cell_jobs = [job for job in jobs if job.run.name == cell.run]
        by_seed = dict((known or {}).get((cell.row, cell.column), {}))
        if experiment.kind in ("quality", "exits") and by_seed:
            if cell.run not in counts:
                counts[cell.run] = _exit_costs(cell_jobs[0])
            cost = counts[cell.run][cell.exit - 1 if cell.exit else -1]
            by_seed = {seed: (value, _recounted(detail, cost)) for seed, (value, detail) in by_seed.items()}
        for job in cell_jobs:
            if job.state() == "done":
                value, detail = READERS[experiment.kind](cell, job, jobs)
                if value is not None:
                    trained = reading.read(job.folder / run_folder.RECIPE).train
                    by_seed[job.seed] = (value, {**detail, "precision": trained.precision})
        seeds = tuple(sorted(by_seed))
        reasons = [failed[job.name] for job in cell_jobs if job.name in failed]
        filled.append(
            Figure(
                cell,
                tuple(by_seed[seed][0] for seed in seeds),
                seeds,
                reasons[0] if reasons and not seeds else "",
                tuple(by_seed[seed][1] for seed in seeds),
            )
        )
    return filled


def _quality(cell: Cell, job: SeededRun, jobs: Sequence[SeededRun]) -> tuple[float | None, dict[str, Any]]:
    if cell.path:
        return _of_exit(column_profile(job.folder, cell.path), 1, job)
    profile = Profile.load(job.folder / run_folder.PROFILE)
    return _of_rule(profile, cell.rule, job) if cell.rule else _of_exit(profile, cell.exit or profile.num_groups, job)


def _of_rule(profile: Profile, share: float, job: SeededRun) -> tuple[float, dict[str, Any]]:
    """Return the accuracy of the rule for stopping at a mean budget, and its mean cost."""
    budget = share * profile.cost(profile.num_groups).flops
    rule, scale = ThresholdTable.load(job.folder / thresholds.NAME).within(budget), profile.row.scale
    return scale * rule.accuracy.value, {
        "test_interval": [scale * rule.accuracy.low, scale * rule.accuracy.high],
        "flops": rule.cost.flops,
        "measure": rule.measure,
        "at": {str(exit_): threshold for exit_, threshold in rule.at.items()},
    }


def _of_exit(profile: Profile, exit_: int, job: SeededRun) -> tuple[float, dict[str, Any]]:
    quality = profile.exits[exit_ - 1].test
    scale = profile.row.scale
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
    seconds = sum(row["seconds"] for row in rows)
    return min(sigma), {
        "measurements": len(rows),
        "not_positive": [row["step"] for row in rows if row["sigma"][cell.exit - 1] <= 0],
        "median_sigma": statistics.median(sigma),
        "median_cosine": statistics.median(cosine),
        "smallest_cosine": min(cosine),
        "seconds": seconds,
        "share_of_training": seconds / sum(float(epoch["seconds"]) for epoch in _epochs(job)),
        "epochs": [row["epoch"] for row in rows],
        "sigma": sigma,
        "cosine": cosine,
    }


def _time(cell: Cell, job: SeededRun, jobs: Sequence[SeededRun]) -> tuple[float | None, dict[str, Any]]:
    rows = _epochs(job)
    seconds = sum(float(row["seconds"]) for row in rows)
    baselines = [
        sum(float(row["seconds"]) for row in _epochs(other))
        for other in jobs
        if other.seed == job.seed and other.recipe.train.method == "bp" and other.state() == "done"
        and other.recipe.data == job.recipe.data and other.recipe.model == job.recipe.model
    ]  # fmt: skip
    return (seconds / baselines[0] if baselines else None), {
        "seconds": list(accumulate(float(row["seconds"]) for row in rows)),
        "train_loss": [row["train"]["loss"][-1] for row in rows],
        "validation_loss": [row["validation"]["loss"][-1] for row in rows if row["validation"]["loss"]],
        "workers": job.run.workers,
    }


READERS: dict[Kind, Callable[[Cell, SeededRun, Sequence[SeededRun]], tuple[float | None, dict[str, Any]]]] = {
    "quality": _quality,
    "exits": _quality,
    "memory": _memory,
    "descent": _descent,
    "time": _time,
}


def _epochs(job: SeededRun) -> list[dict[str, Any]]:
    return journal.read(job.folder / run_folder.METRICS)


def _count(
    cell: Cell, jobs: Sequence[SeededRun]
) -> tuple[tuple[float, ...], tuple[int, ...], str, tuple[dict[str, Any], ...]]:
    """Count an exit of a network that is built and not trained."""
    groups, critics = _components(next(job for job in jobs if job.run.name == cell.run))
    exit_critic = critics[cell.exit - 1 : cell.exit]
    cost = sum([*groups[: cell.exit], *exit_critic], start=NOTHING)
    detail = {"params": cost.params, "flops": cost.flops}
    if exit_critic:
        detail |= {"critic_params": exit_critic[0].params, "critic_flops": exit_critic[0].flops}
    return (cost.params / 1e6,), (0,), "", (detail,)


def _exit_costs(job: SeededRun) -> list[Cost]:
    groups, critics = _components(job)
    return [sum([*groups[:i], *critics[i - 1 : i]], start=NOTHING) for i in range(1, len(groups) + 1)]


def _components(job: SeededRun) -> tuple[Sequence[Cost], Sequence[Cost]]:
    """Count groups and critics of a run's network, which is built and not trained."""
    facts, row = facts_of(job.recipe), row_of(job.recipe.train.method)
    network = build_network(job.recipe, facts, whole=not row.cuts, compare=False)
    return component_costs(list(network.groups), list(network.critics), example_input(facts, 1))


def _recounted(detail: dict[str, Any], cost: Cost) -> dict[str, Any]:
    """Replace the multiply-adds of an earlier report by today's count, where it is the same network by its weights."""
    return {**detail, "flops": cost.flops} if detail.get("params") == cost.params else detail
