"""A picture of a profile: quality over multiply-adds, the Pareto front marked."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from anytime_lct.budget import show_count
from anytime_lct.errors import AnalysisError
from anytime_lct.profile import Profile, Quality
from anytime_lct.selector import pareto_front

BLUE, GREY, INK = "#1f5fa8", "#9aa3ad", "#22282f"
LOG_RANGE = 10


def draw(profile: Profile, path: Path) -> None:
    """Write `figure(profile)` as a PNG file; it is there whole or not at all. Raises AnalysisError."""
    save(figure(profile), path)


def save(made: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all; raises AnalysisError."""
    part = path.with_name(f".{path.name}.part")
    try:
        made.savefig(part, format="png")
        part.replace(path)
    except OSError as error:
        raise AnalysisError(f"Could not write the picture '{path}': {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)


def figure(profile: Profile) -> Figure:
    """Draw the quality of every exit over its multiply-adds: on test with its 95% interval, and where choices are made.

    The front joins the open marks of the choosing split. The axis is logarithmic beyond a factor of 10.
    """
    exits = range(1, profile.num_groups + 1)
    front = pareto_front(profile)
    flops = {i: profile.cost(i).flops for i in exits}
    made = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained")
    axes = made.add_subplot()
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
    accuracy = profile.metric == "accuracy"
    if not accuracy:
        axes.invert_yaxis()
    axes.set_ylabel("accuracy, %" if accuracy else "bits per character (better is up)")
    axes.set_xlabel(f"multiply-adds for one {'sample' if accuracy else 'character'}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_count(x)))
    axes.set_title(f"{profile.model} on {profile.data}: every exit", fontsize=11, color=INK, loc="left")
    axes.margins(x=0.14, y=0.16)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return made


def _value(profile: Profile, quality: Quality) -> float:
    return 100 * quality.value if profile.metric == "accuracy" else quality.value


def _bars(profile: Profile, quality: Quality) -> tuple[float, float, float]:
    scale = 100 if profile.metric == "accuracy" else 1
    return (
        scale * quality.value,
        scale * (quality.value - quality.low),
        scale * (quality.high - quality.value),
    )
