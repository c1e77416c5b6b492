"""`anytime-lct thresholds`: how confident an exit must be for a sample to stop there, within a mean budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anytime_lct.cli.analyze import MODEL
from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from anytime_lct.exits.profile import Quality
    from anytime_lct.exits.thresholds import Thresholds


BUDGET = "Mean multiply-adds per sample, e.g. 20M, or 70% of the main network's; may be repeated."
MEASURE = "Measure of confidence; best: the one with the best accuracy on validation."


def thresholds(
    run: Annotated[Path, typer.Argument(help="Run folder, after `train` and `analyze`.")],
    mean_flops: Annotated[list[str], typer.Option(help=BUDGET)],
    measure: Annotated[str, typer.Option(metavar="max-probability|margin|entropy|best", help=MEASURE)] = "best",
    data_root: Annotated[str | None, typer.Option(help="Folder of the data set, if it has moved.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rules as one JSON object.")] = False,
) -> None:
    """Search which exits to visit and how confident each must be, for the best accuracy at a mean cost.

    Easy samples stop early and leave their share of the budget to hard ones. The search uses validation data only, and
    holds the budget with a margin for new samples; the test split is reported. Where no rule is significantly better
    than the best fixed exit within the budget, every sample stops at that exit. Rules are added to thresholds.json in
    the run folder, which `export` puts into the bundle.

    Example: anytime-lct thresholds runs/fashion --mean-flops 10M --mean-flops 60%
    """
    from anytime_lct.cli.screen import say, screen
    from anytime_lct.errors import BudgetError
    from anytime_lct.exits.budget import parse_flops
    from anytime_lct.exits.thresholds import MEASURES
    from anytime_lct.run_folder.paths import Changes
    from anytime_lct.verbs.thresholds import thresholds as search_thresholds

    if measure not in (*MEASURES, "best"):
        raise BudgetError(f"Expected --measure {', '.join(MEASURES)} or best, got '{measure}'.")
    measures = MEASURES if measure == "best" else (measure,)
    budgets = [parse_flops(text) for text in mean_flops]
    changes = Changes(data_root=data_root, model=model)
    rules = search_thresholds(run, budgets, measures, changes=changes)  # type: ignore[arg-type]
    if as_json:
        print_json(rules.model_dump_json())
        return
    console = screen()
    console.print(table(rules.rules))
    for line in _fixed_lines(rules.rules):
        say(console, line)
    say(console, NOTE, "dim")
    console.print(f"Wrote {run / 'thresholds.json'}.", highlight=False, soft_wrap=True)


NOTE = (
    "FLOPs: one multiply-add counts one; a sample pays for the groups up to its exit and every visited critic. "
    "Searched on validation, where the upper end of the mean cost's 95% interval holds the budget; accuracy and cost "
    "are those of test, with 95% intervals. The fixed exit is the most accurate one on validation that costs no more "
    "than the mean budget."
)


def _fixed_lines(rules: tuple[Thresholds, ...]) -> list[str]:
    """Say for which budgets no rule is offered, and which exit to use instead."""
    from anytime_lct.exits.budget import show_count

    return [
        f"{show_count(rule.mean_flops)}: no rule is significantly better than exit {rule.fixed} on validation"
        f"{'' if rule.p_value is None else f' (p = {rule.p_value:.2g})'}; every sample stops at exit {rule.fixed}."
        for rule in rules
        if len(rule.at) == 1 and rule.fixed is not None
    ]


def table(rules: tuple[Thresholds, ...]) -> Table:
    """Return a table of rules, one row per budget."""
    from anytime_lct.cli.screen import grid
    from anytime_lct.exits.budget import show_count

    rows = [
        [
            show_count(rule.mean_flops),
            _steps(rule),
            f"{show_count(rule.cost.flops)}\n[{show_count(rule.cost.low)},{show_count(rule.cost.high)}]",
            _show(rule.accuracy),
            f"{rule.fixed}: {_show(rule.fixed_accuracy)}" if rule.fixed_accuracy else "-",
        ]
        for rule in rules
    ]
    columns = ("mean budget", "stop if", "mean cost", "accuracy", "fixed exit")
    return grid(columns, rows, title="Rules for stopping", left=["stop if"])


def _steps(rule: Thresholds) -> str:
    """Format where samples stop, and which share of them, one line per exit."""
    *early, last = rule.at
    if not early:
        return f"exit {last}: all"
    lines = [f"exit {i}: {rule.at[i]:.3f} ({100 * rule.shares[i]:.0f}%)" for i in early]
    return "\n".join([f"{rule.measure} at least", *lines, f"exit {last}: else ({100 * rule.shares[last]:.0f}%)"])


def _show(quality: Quality) -> str:
    return f"{100 * quality.value:.2f}%\n[{100 * quality.low:.2f},{100 * quality.high:.2f}]"
