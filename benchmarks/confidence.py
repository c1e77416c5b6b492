"""Stopping rules against fixed exits: test accuracy at the mean multiply-adds of the exits between first and main.

For every run (seeds of one recipe, trained and analyzed before) rules are searched on validation for a mean cost up to
that of exit 2, exit 3, .., and compared with the exit on the same test samples by McNemar's exact test; the picture has
rules for more budgets. Nothing is written into the run folders.

    anytime-lct reproduce exits --only 'exits-cifar10-jpeg-resnet14-lct-n3-*'
    python benchmarks/confidence.py reproduced/runs/exits-cifar10-jpeg-resnet14-lct-n3-seed0 [RUN ..] [--data-root DIR]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from measuring import RESULTS, write

from anytime_lct.analysis import measure, picture, threshold_search
from anytime_lct.analysis.statistics import p_worse
from anytime_lct.data import datasets
from anytime_lct.exits.budget import show_count
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import MEASURES
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.paths import Changes

POINTS = 16


def one_run(path: Path, data_root: str | None) -> dict[str, Any]:
    """Search rules for one trained network; return them with its exits."""
    run = run_folder.open_run(path, Changes(data_root=data_root))
    data = datasets.from_recipe(run.recipe)
    profile = Profile.load(path)
    exits, temperatures = range(1, profile.num_groups + 1), [exit.temperature for exit in profile.exits]
    evaluator = measure.network_evaluator(run.network, data)
    validation, test = (
        threshold_search.collect(evaluator, split, tuple(exits), temperatures) for split in ("validation", "test")
    )
    result: dict[str, Any] = {
        "seed": run.recipe.train.seed,
        "data": profile.data,
        "exits": [
            {
                "exit": i,
                "flops": profile.cost(i).flops,
                "validation": profile.quality(i).value,
                "test": profile.exits[i - 1].test.model_dump(),
                "temperature": profile.exits[i - 1].temperature,
                "calibration": profile.exits[i - 1].calibration.model_dump(),  # type: ignore[union-attr]
            }
            for i in exits
        ],
        "at_exits": [],
        "curve": [],
    }
    samples = np.arange(test.correct.shape[1])
    for i in list(exits)[1:-1]:
        budget, row = profile.cost(i).flops, {"exit": i, "budget": profile.cost(i).flops}
        for name, measures in (("best", MEASURES), *((name, (name,)) for name in MEASURES)):
            rule = threshold_search.search(profile, validation, test, budget, measures)
            correct = test.correct[threshold_search.stopping_rows(test, rule.measure, rule.at), samples]
            p = p_worse(np.stack([test.correct[i - 1], correct]), "accuracy")[0][1]
            row[name] = {
                "rule": rule.model_dump(mode="json"),
                "gain": float(correct.mean() - test.correct[i - 1].mean()),
                "p": p,
                "cost_to_budget": rule.cost.flops / budget,
            }
        print(
            f"{path.name}: exit {i} {test.correct[i - 1].mean():.2%} at {show_count(budget)}, "
            f"rule {row['best']['rule']['accuracy']['value']:.2%} at {row['best']['cost_to_budget']:.3f} of it "
            f"(p {row['best']['p']:.1e}), at {row['best']['rule']['at']} of {row['best']['rule']['measure']}",
            flush=True,
        )
        result["at_exits"].append(row)
    costs = [profile.cost(i).flops for i in exits]
    for budget in np.linspace(min(costs) * 1.02, max(costs), POINTS).tolist():
        rule = threshold_search.search(profile, validation, test, budget)
        result["curve"].append({"budget": budget, "cost": rule.cost.flops, "accuracy": rule.accuracy.value})
    return result


def table(runs: list[dict[str, Any]]) -> str:
    """Return Markdown: a line per exit, means over runs, with the standard deviation if there are several."""
    lines = [
        f"Test accuracy at the mean multiply-adds of a fixed exit, {runs[0]['data']}, "
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''}. One multiply-add counts one.",
        "",
        "| budget | fixed exit | rule for stopping | gain, points | mean cost over budget | p (each seed) |",
        "|---|---|---|---|---|---|",
    ]
    for k, first in enumerate(runs[0]["at_exits"]):
        rows = [run["at_exits"][k]["best"] for run in runs]
        fixed = [100 * run["exits"][first["exit"] - 1]["test"]["value"] for run in runs]
        cells = [
            f"exit {first['exit']}, {show_count(first['budget'])}",
            spread(fixed),
            spread([100 * row["rule"]["accuracy"]["value"] for row in rows]),
            spread([100 * row["gain"] for row in rows]),
            spread([row["cost_to_budget"] for row in rows], 3),
            ", ".join(f"{row['p']:.1g}" for row in rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int = 2) -> str:
    """Write a mean, with the standard deviation if there are several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy over mean multiply-adds: rules as a line, fixed exits as marks, means over runs."""
    figure = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    curves = [[(point["cost"], 100 * point["accuracy"]) for point in run["curve"]] for run in runs]
    cost, accuracy = np.array(sorted(np.mean(curves, axis=0).tolist())).T
    axes.plot(cost, accuracy, "o-", color=picture.BLUE, markersize=4, linewidth=1.8, label="rules for stopping")
    flops = [exit["flops"] for exit in runs[0]["exits"]]
    tests = [[100 * run["exits"][k]["test"]["value"] for run in runs] for k in range(len(flops))]
    means = [statistics.mean(values) for values in tests]
    axes.plot(flops, means, "s", color=picture.GREY, markersize=7, label="fixed exits")
    for k, (x, y) in enumerate(zip(flops, means, strict=True), start=1):
        name = "main" if k == len(flops) else f"exit {k}"
        axes.annotate(name, (x, y), xytext=(8, -10), textcoords="offset points", fontsize=9, color=picture.INK)
    axes.set_xlabel("multiply-adds for one sample, mean over test")
    axes.set_ylabel("test accuracy, %")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_count(x)))
    axes.set_title(f"{runs[0]['data']}: where samples stop", fontsize=11, color=picture.INK, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    picture.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data-root")
    arguments = parser.parse_args()
    runs = [one_run(path, arguments.data_root) for path in arguments.runs]
    draw(runs, RESULTS / "confidence.png")
    (RESULTS / "confidence.md").write_text(table(runs), encoding="utf-8")
    print(table(runs) + f"\nwrote {write('confidence', {'runs': runs})}")


if __name__ == "__main__":
    main()
