"""A picture of sufficient descent over training: sigma of (16) as in Figures 3 and 4 of the paper, and the cosine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytime_lct.analysis.picture import GREY, INK, save

COLOURS = ("#1f5fa8", "#c2571a", "#2f8a57", "#8a4fa3", "#a8893a", "#3a9aa8", "#b0446b")
LOG_RANGE = 30
SMOOTHED_FROM, WINDOWS = 40, 20  # a running median over a twentieth of the run, where there is enough to run over


def draw(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write `figure(lines, title)` as a PNG file; it is there whole or not at all. Raises AnalysisError."""
    save(figure(lines, title), path)


def figure(lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw the lines of descent.jsonl: a curve for each layer group but the last, whose sigma is always 1.

    Faint is every measurement, strong their running median; the axis of sigma is logarithmic where all are positive
    and lie further apart than a factor of 30.
    """
    made = Figure(figsize=(7.2, 5.6), dpi=160, layout="constrained")
    above, below = made.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, key, name in ((above, "sigma", "σ, equation (16)"), (below, "cosine", "cosine")):
        _curves(axes, lines, key)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    found = [sigma for line in lines for sigma in line["sigma"][:-1] if sigma is not None]
    if found and min(found) > 0 and max(found) > LOG_RANGE * min(found):
        above.set_yscale("log")
    else:
        _zero_line(above)
    _zero_line(below)
    smoothed = len(lines) >= SMOOTHED_FROM
    below.set_xlabel("epochs" + " (faint: every measurement; strong: their running median)" * smoothed)
    below.margins(x=0.02)
    made.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    if found:
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False, fontsize=9, ncols=6)
    return made


def _curves(axes: Axes, lines: Sequence[dict[str, Any]], key: str) -> None:
    for k in range(len(lines[0][key]) - 1 if lines else 0):
        colour = COLOURS[k % len(COLOURS)]
        x = [line["epoch"] for line in lines]
        y = [math.nan if line[key][k] is None else line[key][k] for line in lines]  # a gap
        label = f"group {k + 1}"
        if len(y) < SMOOTHED_FROM:
            axes.plot(x, y, "o-", color=colour, linewidth=1.6, markersize=3.5, label=label)
            continue
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
        axes.plot(x, running_median(y, len(y) // WINDOWS), color=colour, linewidth=1.8, label=label)


def running_median(values: Sequence[float], window: int) -> list[float]:
    """Return the median around each value, over `window` neighbours at most and without what is NaN."""
    found = []
    for k in range(len(values)):
        near = [v for v in values[max(0, k - window // 2) : k + window // 2 + 1] if not math.isnan(v)]
        found.append(statistics.median(near) if near else math.nan)
    return found


def _zero_line(axes: Axes) -> None:
    axes.axhline(0.0, color=GREY, linewidth=1.2, zorder=1)
