"""The picture of an experiment: ours beside the paper's for tables, curves for Figures 3 to 7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from anytime_lct.analysis.picture import save
from anytime_lct.reproduce.figures import Figure
from anytime_lct.reproduce.plan import Experiment

COLOURS = ("#1f5fa8", "#c8553d", "#3a7d44", "#8a5fa8", "#b8860b", "#22282f", "#5b8e9d", "#9aa3ad")
INK, GREY = "#22282f", "#9aa3ad"
SMOOTHING_WINDOW = 9


def draw(experiment: Experiment, figures: Sequence[Figure], path: Path) -> Path:
    """Write the picture as PNG, whole or not at all; raises AnalysisError if that fails."""
    kind = experiment.kind
    panels = 2 if kind in ("descent", "time") else 1
    rows = len({figure.cell.row for figure in figures})
    size = (10.5, 4.2) if panels == 2 else (8.4, max(3.2, 0.5 * rows + 2.6)) if kind != "exits" else (9.5, 5.2)
    canvas = Canvas(figsize=size, dpi=140, layout="constrained")
    if kind == "descent":
        _descent(canvas.subplots(1, 2), figures)
    elif kind == "time":
        _time(canvas.subplots(1, 2), figures)
    elif kind == "exits":
        _exits(canvas.add_subplot(), experiment, figures)
    else:
        _dots(canvas.add_subplot(), experiment, figures)
    canvas.suptitle(f"{experiment.name}: {experiment.title}", fontsize=11, color=INK, x=0.01, ha="left")
    save(canvas, path)
    return path


def _dots(axes: Axes, experiment: Experiment, figures: Sequence[Figure]) -> None:
    """A line per row: ours as filled marks with the deviation over seeds, the paper's as open marks."""
    visible = [figure for figure in figures if figure.values or figure.cell.paper is not None]
    rows = list(dict.fromkeys(figure.cell.row for figure in visible))
    columns = list(dict.fromkeys(figure.cell.column for figure in figures))
    for k, column in enumerate(columns):
        offset = (k - (len(columns) - 1) / 2) * 0.7 / max(1, len(columns))
        colour = COLOURS[k % len(COLOURS)]
        in_column = [figure for figure in visible if figure.cell.column == column]
        ours = [(f.mean, rows.index(f.cell.row) + offset, f.deviation or 0.0) for f in in_column if f.mean is not None]
        theirs = [(f.cell.paper, rows.index(f.cell.row) + offset) for f in in_column if f.cell.paper is not None]
        if ours:
            x, y, error = zip(*ours, strict=True)
            axes.errorbar(x, y, xerr=error, fmt="o", color=colour, markersize=5, capsize=2, label=column)
        if theirs:
            x, y = zip(*theirs, strict=True)
            axes.plot(x, y, "o", color=colour, markerfacecolor="white", markersize=5, alpha=0.8,
                      label=None if ours else f"{column} (paper)")  # fmt: skip
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{experiment.unit}: filled ours, open the paper's")
    if experiment.kind == "complexity":
        axes.set_xscale("log")
    _style(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _exits(axes: Axes, experiment: Experiment, figures: Sequence[Figure]) -> None:
    """Accuracy over multiply-adds: a line per row, with the deviation over seeds."""
    measured = [figure for figure in figures if figure.mean is not None]
    for k, row in enumerate(dict.fromkeys(figure.cell.row for figure in measured)):
        exits = sorted((f for f in measured if f.cell.row == row), key=lambda f: f.detail[0]["flops"])
        axes.errorbar(
            [figure.detail[0]["flops"] / 1e6 for figure in exits],
            [figure.mean or 0.0 for figure in exits],
            yerr=[figure.deviation or 0.0 for figure in exits],
            fmt=("o-", "s--", "^:")[k // len(COLOURS) % 3],
            color=COLOURS[k % len(COLOURS)], markersize=4, linewidth=1.3, capsize=2, label=row,
        )  # fmt: skip
    axes.set_xlabel("multiply-adds of the exit, M")
    axes.set_ylabel(experiment.unit.partition(", at")[0])
    _style(axes)
    if measured:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _descent(panels: Any, figures: Sequence[Figure]) -> None:
    """Sigma (16) and cosine over epochs, medians of neighbouring measurements; a curve per layer group.

    The axes show the range of the medians: single measurements can be far outside where the true gradient is small.
    """
    medians: tuple[list[float], list[float]] = ([], [])
    for k, figure in enumerate(figures):
        for detail in figure.detail[:1]:
            for axes, key, values in zip(panels, ("sigma", "cosine"), medians, strict=True):
                x, y = _smooth(detail["epochs"], detail[key])
                values += y
                axes.plot(x, y, color=COLOURS[k % len(COLOURS)], linewidth=1.4, label=figure.cell.column)
                axes.plot(detail["epochs"], detail[key], ".", color=COLOURS[k % len(COLOURS)], alpha=0.18, markersize=3)
    labels = ("sigma, ratio (16)", "cosine with the true gradient")
    for axes, label, values in zip(panels, labels, medians, strict=True):
        low, high = min([0.0, *values]), max([1.0, *values])
        axes.set_ylim(low - 0.15 * (high - low), high + 0.1 * (high - low))
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        _style(axes)
    if any(figure.detail for figure in figures):
        panels[0].legend(fontsize=7, frameon=False)


def _time(panels: Any, figures: Sequence[Figure]) -> None:
    """Loss of the main exit over the seconds of training, on training and on validation data."""
    for k, figure in enumerate(figures):
        for detail in figure.detail[:1]:
            label = f"{figure.cell.column}, {figure.cell.row}"
            for axes, key in zip(panels, ("train_loss", "validation_loss"), strict=True):
                if detail[key]:
                    axes.plot(detail["seconds"], detail[key], "o-", color=COLOURS[k % len(COLOURS)], markersize=3,
                              linewidth=1.3, label=label)  # fmt: skip
    for axes, label in zip(panels, ("training loss, nats", "validation loss, nats"), strict=True):
        axes.set_xlabel("seconds of training")
        axes.set_ylabel(label)
        _style(axes)
    if any(figure.detail for figure in figures):
        panels[0].legend(fontsize=7, frameon=False)


def _smooth(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    from statistics import median

    half = SMOOTHING_WINDOW // 2
    return list(x), [median(y[max(0, k - half) : k + half + 1]) for k in range(len(y))]


def _style(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
