"""A picture of a profile: quality over multiply-adds, the Pareto front marked."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from anytime_lct.budget import show_count
from anytime_lct.errors import AnalysisError
from anytime_lct.profile import Profile, Quality
from anytime_lct.selector import pareto_front

BLUE, GREY, INK = "#1f5fa8", "#9aa3ad", "#22282f"
LOG_RANGE = 10


def draw(profile: Profile, path: Path) -> None:
    """Draw the test quality of every exit with its 95% interval over its FLOPs, into a PNG file at `path`."""
    exits = range(1, profile.num_groups + 1)
    front = pareto_front(profile)
    flops = {i: profile.cost(i).flops for i in exits}
    figure = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [flops[i] for i in front],
        [_value(profile, i) for i in front],
        color=BLUE, linewidth=1.8, zorder=2, label="Pareto front",
    )  # fmt: skip
    for i in exits:
        value, below, above = _bars(profile, profile.exits[i - 1].test)
        colour = BLUE if i in front else GREY
        axes.errorbar(
            flops[i], value, yerr=[[below], [above]],
            fmt="o", color=colour, ecolor=colour, markersize=7, capsize=3, elinewidth=1.1, zorder=3,
        )  # fmt: skip
        axes.annotate(
            f"exit {i}" + (" (main)" if i == profile.num_groups else ""),
            (flops[i], value), xytext=(9, -13), textcoords="offset points", fontsize=9, color=INK,
        )  # fmt: skip
    if max(flops.values()) > LOG_RANGE * min(flops.values()):
        axes.set_xscale("log")
    accuracy = profile.metric == "accuracy"
    if not accuracy:
        axes.invert_yaxis()
    axes.set_ylabel("test accuracy, %" if accuracy else "test bits per character (better is up)")
    axes.set_xlabel(f"multiply-adds for one {'sample' if accuracy else 'character'}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_count(x)))
    axes.set_title(f"{profile.model} on {profile.data}: every exit, 95% intervals", fontsize=11, color=INK, loc="left")
    axes.margins(x=0.14, y=0.16)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise AnalysisError(f"Could not write the picture '{path}': {error.strerror or error}.") from None


def _value(profile: Profile, i: int) -> float:
    value = profile.exits[i - 1].test.value
    return 100 * value if profile.metric == "accuracy" else value


def _bars(profile: Profile, quality: Quality) -> tuple[float, float, float]:
    scale = 100 if profile.metric == "accuracy" else 1
    return scale * quality.value, scale * (quality.value - quality.low), scale * (quality.high - quality.value)
