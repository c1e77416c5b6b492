"""Figures: quality over multiply-adds with the Pareto front marked, and sufficient descent over training."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from anytime_lct import disk
from anytime_lct.errors import AnalysisError
from anytime_lct.exits.budget import show_count
from anytime_lct.exits.profile import Profile, Quality
from anytime_lct.exits.selector import pareto_front

COLOURS = ("#1f5fa8", "#c2571a", "#2f8a57", "#8a4fa3", "#a8893a", "#3a9aa8", "#b0446b")
SIGMA_RANGE = 30
SMOOTHED_FROM, WINDOWS = 40, 20  # from 40 measurements on, a running median over a twentieth of them


def draw_descent(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write `descent_figure(lines, title)` as a PNG file, whole or not at all. Raises AnalysisError."""
    save(descent_figure(lines, title), path)


def descent_figure(lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw the lines of descent.jsonl: a curve for each layer group but the last, whose sigma is always 1.

    Measurements are faint, their running median is strong. The axis of sigma is logarithmic if all are positive and
    differ by more than a factor of 30.
    """
    figure = Figure(figsize=(7.2, 5.6), dpi=160, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, key, name in ((above, "sigma", "σ, equation (16)"), (below, "cosine", "cosine")):
        _curves(axes, lines, key)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    sigmas = [sigma for line in lines for sigma in line["sigma"][:-1] if sigma is not None]
    if sigmas and min(sigmas) > 0 and max(sigmas) > SIGMA_RANGE * min(sigmas):
        above.set_yscale("log")
    else:
        _zero_line(above)
    _zero_line(below)
    smoothed = len(lines) >= SMOOTHED_FROM
    below.set_xlabel("epochs" + " (faint: every measurement; strong: their running median)" * smoothed)
    below.margins(x=0.02)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    if sigmas:
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False, fontsize=9, ncols=6)
    return figure


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
    """Return the median around each value, over at most `window` neighbours, without NaN."""
    medians = []
    for k in range(len(values)):
        near = [v for v in values[max(0, k - window // 2) : k + window // 2 + 1] if not math.isnan(v)]
        medians.append(statistics.median(near) if near else math.nan)
    return medians


def _zero_line(axes: Axes) -> None:
    axes.axhline(0.0, color=GREY, linewidth=1.2, zorder=1)


BLUE, GREY, INK = "#1f5fa8", "#9aa3ad", "#22282f"
LOG_RANGE = 10


def draw(profile: Profile, path: Path) -> None:
    """Write `profile_figure(profile)` as a PNG file, whole or not at all. Raises AnalysisError."""
    save(profile_figure(profile), path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all; raises AnalysisError."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    disk.write(path, content.getvalue(), AnalysisError)


def profile_figure(profile: Profile) -> Figure:
    """Draw the quality of every exit over its multiply-adds: on test with its 95% interval, and on the choosing split.

    The front joins the open marks of the choosing split. The axis is logarithmic beyond a factor of 10.
    """
    exits = range(1, profile.num_groups + 1)
    front = pareto_front(profile)
    flops = {i: profile.cost(i).flops for i in exits}
    figure = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [flops[i] for i in front],
        [_value(profile, profile.quality(i)) for i in front],
        color=BLUE, linewidth=1.8, zorder=2, label=f"Pareto front, on {profile.split}",
    )  # fmt: skip
    for i in exits:
        value, below, above = _bars(profile, profile.exits[i - 1].test)
        on_front = i in front  # the front rises to the right: free above and to the left, other exits lie below it
        colour = BLUE if on_front else GREY
        axes.plot(
            flops[i], _value(profile, profile.quality(i)),
            "o", color=colour, markerfacecolor="white", markersize=6, zorder=3,
        )  # fmt: skip
        axes.errorbar(
            flops[i], value, yerr=[[below], [above]],
            fmt="o", color=colour, ecolor=colour, markersize=7, capsize=3, elinewidth=1.1, zorder=4,
            label="test, 95% interval" if i == 1 else None,
        )  # fmt: skip
        axes.annotate(
            "main" if i == profile.num_groups else f"exit {i}",
            (flops[i], value), xytext=(-9, 7) if on_front else (9, -7), textcoords="offset points",
            fontsize=9, color=INK, ha="right" if on_front else "left", va="bottom" if on_front else "top",
        )  # fmt: skip
    if max(flops.values()) > LOG_RANGE * min(flops.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if not profile.row.rises:
        axes.invert_yaxis()
    axes.set_ylabel(profile.row.axis)
    axes.set_xlabel(f"multiply-adds for one {profile.row.sample}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_count(x)))
    axes.set_title(f"{profile.model} on {profile.data}: every exit", fontsize=11, color=INK, loc="left")
    axes.margins(x=0.14, y=0.16)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def _value(profile: Profile, quality: Quality) -> float:
    return profile.row.scale * quality.value


def _bars(profile: Profile, quality: Quality) -> tuple[float, float, float]:
    scale = profile.row.scale
    return (
        scale * quality.value,
        scale * (quality.value - quality.low),
        scale * (quality.high - quality.value),
    )
