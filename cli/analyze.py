"""`anytime-lct analyze`: measure the cost and the quality of every exit of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from anytime_lct.exits.profile import Profile, Quality

HTML = "Write a page with all figures into this file, for a browser."
MODEL = "Network as path/to/file.py:FACTORY, if the run's copy of its file cannot be used."


def analyze(
    run: Annotated[Path, typer.Argument(help="Run folder that `train` wrote.")],
    data_root: Annotated[str | None, typer.Option(help="Folder that holds the data set, if it has moved.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help=HTML)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as one JSON object.")] = False,
) -> None:
    """Measure every sub-model: multiply-adds, parameters, quality on validation and test data, latency.

    Writes profile.json and exits.png into the run folder, and descent.png where train.track_descent was set.

    With --html it writes a page, one file that needs no network: the curve, what each exit gets right, when samples
    stop under a confidence, calibration, and the confusion of every exit.

    Example: anytime-lct analyze runs/digits-resnet-0 --html exits.html
    """
    from anytime_lct.cli.screen import say, screen
    from anytime_lct.run_folder.paths import Changes
    from anytime_lct.verbs.analyze import analyze as analyze_run
    from anytime_lct.verbs.analyze import savings_warning

    changes = Changes(data_root=data_root, model=model)
    profile = analyze_run(run, changes=changes, html=html)
    if as_json:
        print_json(profile.model_dump_json())
        return
    console = screen()
    console.print(table(profile))
    say(console, NOTE + SPLIT_NOTES[profile.split], "dim")
    if warning := savings_warning(run, profile, changes):
        say(console, warning)
    written = f"{run / 'profile.json'} and {run / 'exits.png'}"
    if (run / "descent.png").exists():
        written = f"{run / 'profile.json'}, {run / 'exits.png'} and {run / 'descent.png'}"
    if html is not None:
        written += f", and {html}"
    console.print(f"Wrote {written}.", highlight=False, soft_wrap=True)


NOTE = (
    "FLOPs: one multiply-add counts one, for one sample. In parentheses: the critic's share of the exit. Test with its "
    "95% interval. Latency: torch, one thread, batch 1. *: no other exit is both cheaper and better. "
)
SPLIT_NOTES = {
    "validation": "Exits are chosen on validation data; test is only reported.",
    "test": "There is no validation split: exits are chosen on test data, so that their test quality is optimistic.",
}


def table(profile: Profile) -> Table:
    """Return a table of a profile, a row per exit, with the critic's share in parentheses as in Table VIII."""
    from anytime_lct.cli.screen import grid
    from anytime_lct.exits.budget import show_count, show_seconds
    from anytime_lct.exits.selector import pareto_front

    def with_share(whole: int, part: int | None) -> str:
        return show_count(whole) if part is None else f"{show_count(whole)} ({100 * part / max(1, whole):.0f}%)"

    front, rows = pareto_front(profile), []
    for exit_ in profile.exits:
        i = exit_.index
        is_main = i == profile.num_groups
        cost, critic = profile.cost(i), None if is_main else profile.critics[i - 1]
        rows.append(
            [
                f"{i}{' (main)' if is_main else ''}{' *' if i in front else ''}",
                with_share(cost.flops, critic and critic.flops),
                with_share(cost.params, critic and critic.params),
                show_quality(profile, exit_.validation) if exit_.validation else "-",
                show_quality(profile, exit_.test, interval=True),
                show_seconds(exit_.latency.seconds) if exit_.latency else "-",
            ]
        )
    columns = (
        "exit", "FLOPs (critic)", "parameters (critic)", f"validation {profile.metric}", f"test {profile.metric}",
        "latency",
    )  # fmt: skip
    return grid(columns, rows, title=f"{profile.model} on {profile.data}", left=["exit"])


def show_quality(profile: Profile, quality: Quality, *, interval: bool = False) -> str:
    """Format a quality as its metric is shown, with the bounds of its 95% interval behind it."""
    show, sign = profile.row.show, profile.row.sign
    bounds = f" [{show(quality.low).removesuffix(sign)},{show(quality.high).removesuffix(sign)}]"
    return show(quality.value) + bounds * interval
