"""LCT's sub-models against other ways to a smaller network, from the runs of `anytime-lct reproduce exits`.

    LCT             one training, four sub-models, cut for 25, 50 and 75% of the network
    alone           each sub-model trained by itself
    narrower        the network with fewer channels, by backprop
    pruned          the trained network without the channels of least norm, by Torch-Pruning, trained 8 epochs more
    the network     by backprop

Each in float32 and, by `export --int8`, in int8. ResNet-14 on CIFAR-10 (JPEG), 20 epochs. Only LCT gives several
networks by one training. Accuracy is on test; the latency of one image on one thread by onnxruntime is measured on all
networks in alternation.

    pip install torch-pruning
    python benchmarks/compression.py [--seeds 2] [--jobs 2] [--data-root .data] [--runs reproduced/runs]

Complete runs are not repeated, also those that `reproduce exits` has made; interrupted runs are resumed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measuring import RESULTS, ratios, write

from anytime_lct.analysis import picture
from anytime_lct.exits.bundle import Bundle, Contents
from anytime_lct.exits.profile import Profile
from anytime_lct.reproduce import runner
from anytime_lct.reproduce.exits import NARROW, exits
from anytime_lct.reproduce.plan import Run, merged
from anytime_lct.reproduce.runner import SeededRun
from anytime_lct.run_folder.paths import Changes
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.verbs import export

SETTING = "exits-cifar10-jpeg-resnet14-"  # its runs of `reproduce exits`, as their names begin
SHARES, TUNING_EPOCHS, TUNING_RATE = (0.25, 0.5, 0.75), 8, 0.2  # half the rate of the training before
PRUNED = f"{Path(__file__).with_name('pruned.py')}:pruned"
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class Way:
    """One way to smaller networks; `points` are its runs, without SETTING, and exits, from the smallest."""

    name: str
    colour: str
    points: tuple[tuple[str, int], ...]


WAYS = (
    Way("LCT", picture.BLUE, tuple(("lct-n3", i) for i in (1, 2, 3, 4))),
    Way("alone", "#c0662b", tuple((f"alone-n3-exit{i}", 1) for i in (1, 2, 3))),
    Way("narrower", "#7a9e3a", tuple((f"bp-width{width}", 1) for width in NARROW)),
    Way("pruned", "#9b4f96", tuple((f"pruned-{share}", 1) for share in SHARES)),
    Way("the network", picture.INK, (("bp", 1),)),
)


def jobs(seeds: int, folder: Path, data_root: str) -> list[SeededRun]:
    """Return the jobs of every run and seed; a pruned run comes after the run that it is pruned from."""
    names = {SETTING + name for way in WAYS for name, _ in way.points}
    planned = runner.jobs([run for run in exits("small").runs if run.name in names], seeds, folder, data_root)
    for whole in [job for job in planned if job.run.name == f"{SETTING}bp"]:
        for share in SHARES:
            entries = merged(whole.run.tables, {
                "model": {"name": PRUNED, "base": str(whole.folder.resolve()), "share": share},
                "train": {"epochs": TUNING_EPOCHS},
                "groups": {"lr": TUNING_RATE},
            })  # fmt: skip
            del entries["model"]["depth"], entries["model"]["width"]
            run = Run(f"{SETTING}pruned-{share}", entries)
            run_dir, recipe = folder / f"{run.name}-seed{whole.seed}", run.recipe(whole.seed, data_root)
            planned.append(SeededRun(run, whole.seed, run_dir, recipe, whole))
    return planned


def bundles(job: SeededRun) -> dict[str, Bundle]:
    """Export a run in float32 and in int8, unless that is done; return the bundles by precision."""
    by_precision = {}
    for precision, samples in (("float32", None), ("int8", CALIBRATION_SAMPLES)):
        out = job.folder.with_name(f"{job.name}.{precision}")
        if not out.exists():
            root = job.recipe.data.root if samples else None
            export(job.folder, out, Contents(only="exits"), int8_samples=samples, changes=Changes(data_root=root))
        by_precision[precision] = Bundle.open(out)
    return by_precision


def latencies(sessions: Sequence[tuple[AnytimeSession, int]], rounds: int) -> list[dict[str, float]]:
    """Time one image on one thread in alternation; ratios are to the first session."""
    shape = sessions[0][0].manifest.input_shape[1:]
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)  # type: ignore[misc]
    return ratios([lambda session=session, i=i: session.run_to(i, x) for session, i in sessions], rounds)


def spread(values: Sequence[float]) -> str:
    """Write accuracies as a mean in percent, with the standard deviation if there are several."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def measure(planned: Sequence[SeededRun], rounds: int) -> list[dict[str, Any]]:
    """Return a row per point of WAYS: cost and accuracy by seed; of seed 0 int8, and latency over the network's.

    Runs that are not done are skipped.
    """
    by_name = {job.name.removeprefix(SETTING): job for job in planned if job.state() == "done"}
    exported = {name: bundles(job) for name, job in by_name.items() if job.seed == 0}
    points = [(way.name, name, exit_) for way in WAYS for name, exit_ in way.points if f"{name}-seed0" in by_name]
    first = ("bp-seed0", "float32", 1)
    keys = [first] + [
        key
        for _, name, exit_ in points
        for precision in ("float32", "int8")
        if (key := (f"{name}-seed0", precision, exit_)) != first
    ]
    sessions = [(AnytimeSession(exported[name][precision], threads=1), exit_) for name, precision, exit_ in keys]
    latency_of = dict(zip(keys, latencies(sessions, rounds), strict=True))
    rows = []
    for way, name, exit_ in points:
        seeds = [job.seed for job in by_name.values() if job.run.name == SETTING + name]
        profiles = [Profile.load(by_name[f"{name}-seed{seed}"].folder) for seed in seeds]
        int8_profile = exported[f"{name}-seed0"]["int8"].profile
        rows.append(
            {
                "way": way,
                "run": name,
                "exit": exit_,
                "seeds": seeds,
                "flops": [profile.cost(exit_).flops for profile in profiles],
                "params": [profile.cost(exit_).params for profile in profiles],
                "validation": [profile.quality(exit_).value for profile in profiles],
                "test": [profile.exits[exit_ - 1].test.value for profile in profiles],
                "int8_test": int8_profile.exits[exit_ - 1].test.value,
                "latency": latency_of[f"{name}-seed0", "float32", exit_],
                "int8_latency": latency_of[f"{name}-seed0", "int8", exit_],
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as Markdown, a line per network."""
    lines = [
        f"ResNet-14 on CIFAR-10 (JPEG), 20 epochs each, {TUNING_EPOCHS} more for pruned networks; test accuracy in "
        "percent, mean ± standard deviation where there are several seeds; of seed 0 int8, and latency of one image on "
        "one thread as a share of the network's.",
        "",
        "| | multiply-adds | parameters | float32 | latency | int8 | latency in int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {label(row)} | " + " | ".join(cells(row)) + " |")
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a network's line in the table, without its name."""
    return [
        f"{statistics.fmean(row['flops']) / 1e6:.1f}M",
        f"{statistics.fmean(row['params']) / 1e3:.0f}k",
        spread(row["test"]),
        f"{row['latency']['median_ratio']:.2f}",
        f"{100 * row['int8_test']:.2f}",
        f"{row['int8_latency']['median_ratio']:.2f}",
    ]


def label(row: dict[str, Any]) -> str:
    """Name a network: a sub-model by its exit, the others by what distinguishes them."""
    if row["way"] == "LCT":
        return "LCT, " + ("main" if row["exit"] == 4 else f"exit {row['exit']}")
    for mark, form in (("exit", "exit {}"), ("width", "{} wide"), ("pruned-", "to {:.0%}")):
        _, found, value = row["run"].rpartition(mark)
        if found:
            return f"{row['way']}, {form.format(float(value) if mark == 'pruned-' else value)}"
    return row["way"]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy over multiply-adds, float32, and over latency, float32 filled and int8 open."""
    figure = Figure(figsize=(10.4, 4.4), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for way in WAYS:
        own_rows = [row for row in rows if row["way"] == way.name]
        if not own_rows:
            continue
        _line(
            left,
            [statistics.fmean(row["flops"]) / 1e6 for row in own_rows],
            [row["test"] for row in own_rows],
            way,
            "-o",
        )
        _line(right, [row["latency"]["median_ratio"] for row in own_rows], [row["test"] for row in own_rows], way, "-o")
        int8_latency = [row["int8_latency"]["median_ratio"] for row in own_rows]
        _line(right, int8_latency, [[row["int8_test"]] for row in own_rows], way, "--o", hollow=True)
    left.set_xlabel("multiply-adds for one image, millions")
    right.set_xlabel("latency of one image, share of the network's (dashed, open: int8)")
    left.set_ylabel("test accuracy, %")
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    picture.save(figure, path)


def _line(axes: Axes, x: list[float], values: list[list[float]], way: Way, style: str, hollow: bool = False) -> None:
    means = [100 * statistics.fmean(seeds) for seeds in values]
    deviations = [100 * statistics.stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
    fill = "white" if hollow else way.colour
    axes.errorbar(x, means, yerr=deviations, fmt=style, color=way.colour, markerfacecolor=fill, markersize=5,
                  linewidth=1.3, capsize=2, label=None if hollow else way.name)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs in parallel, one thread each")
    parser.add_argument("--data-root", default=".data")
    parser.add_argument("--runs", type=Path, default=Path("reproduced/runs"))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--report", action="store_true", help="only measure the runs that are done")
    arguments = parser.parse_args()
    planned = jobs(arguments.seeds, arguments.runs, arguments.data_root)
    todo = [job for job in planned if not arguments.report and job.state() != "done"]
    failed = runner.run_jobs(todo, arguments.jobs, 1, lambda line: print(line, flush=True))
    if failed:
        raise SystemExit("\n".join(f"{name} failed: {why}" for name, why in failed.items()))
    rows = measure(planned, arguments.rounds)
    (RESULTS / "compression.md").write_text(table(rows), encoding="utf-8")
    draw(rows, RESULTS / "compression.png")
    result = {"tuning_epochs": TUNING_EPOCHS, "calibration_samples": CALIBRATION_SAMPLES, "rows": rows}
    print(f"{table(rows)}\nwrote {write('compression', result)}")


if __name__ == "__main__":
    main()
