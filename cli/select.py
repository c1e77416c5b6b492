"""`anytime-lct select`: pick the exit that suits a budget or a floor of quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from anytime_lct.exits.budget import Budget
    from anytime_lct.exits.profile import Profile
    from anytime_lct.exits.selector import Selection


SOURCE = "Run folder, bundle folder or profile.json."
FLOPS = "Most multiply-adds per sample, e.g. 20M, or 70% of the main network's."
PARAMS = "Most parameters, e.g. 10M."
LATENCY = "Most time per sample, e.g. 5ms."
DROP = "Cheapest at most this far below the best exit, e.g. 1% (1 point of accuracy); else in BPC or RMSE."
NOISE = "Cheapest that is not significantly worse than the best that fits."


def select(
    source: Annotated[Path, typer.Argument(help=SOURCE)],
    budget_flops: Annotated[str | None, typer.Option(help=FLOPS)] = None,
    budget_params: Annotated[str | None, typer.Option(help=PARAMS)] = None,
    budget_latency: Annotated[str | None, typer.Option(help=LATENCY)] = None,
    min_accuracy: Annotated[
        str | None, typer.Option(help="Cheapest of at least this accuracy, e.g. 93% or 0.93.")
    ] = None,
    max_bpc: Annotated[float | None, typer.Option(help="Cheapest of at most these bits per character.")] = None,
    max_rmse: Annotated[
        float | None, typer.Option(help="Cheapest of at most this root mean squared error, in the targets' unit.")
    ] = None,
    max_drop: Annotated[str | None, typer.Option(help=DROP)] = None,
    within_noise: Annotated[bool, typer.Option("--within-noise", help=NOISE)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Pick the exit that suits a budget or a floor of quality; several conditions must all hold.

    Budgets alone pick the most accurate exit that fits, floors the cheapest that reaches them. The choice
    is made on the validation split and reported on the test split. The exit code is 3 where nothing fits.

    Example: anytime-lct select runs/fashion --budget-flops 70% --max-drop 0.5%
    """
    from anytime_lct.exits import selector
    from anytime_lct.exits.budget import parse_drop, parse_quality

    profile, exits = open_profile(source)
    selection = selector.select(
        profile,
        read_budget(budget_flops, budget_params, budget_latency),
        min_accuracy=None if min_accuracy is None else parse_quality(min_accuracy),
        max_bpc=max_bpc,
        max_rmse=max_rmse,
        max_drop=None if max_drop is None else parse_drop(max_drop, profile.metric),
        within_noise=within_noise,
        exits=exits,
    )
    if as_json:
        import json

        print_json(json.dumps(as_dict(profile, selection)))
    else:
        show(profile, selection)


def open_profile(source: Path) -> tuple[Profile, tuple[int, ...] | None]:
    """Open the profile of a run, of a file, or of a bundle, with the exits that a bundle serves."""
    from anytime_lct.exits.bundle import Bundle, is_bundle
    from anytime_lct.exits.profile import Profile

    if is_bundle(source):
        bundle = Bundle.open(source, verify=False)
        return bundle.profile, bundle.manifest.served
    return Profile.load(source), None


def read_budget(flops: str | None, params: str | None, latency: str | None, exit: int | None = None) -> Budget:
    """Read the budget options that `select` and `predict` share."""
    from anytime_lct.exits.budget import Budget, parse_count, parse_flops, parse_seconds

    return Budget(
        flops=None if flops is None else parse_flops(flops),
        params=None if params is None else parse_count(params),
        latency=None if latency is None else parse_seconds(latency),
        exit=exit,
    )


def as_dict(profile: Profile, selection: Selection) -> dict[str, object]:
    """Return a selection as plain values."""
    main, latency = profile.cost(profile.num_groups), profile.exits[selection.exit - 1].latency
    return {
        "exit": selection.exit,
        "flops": selection.cost.flops,
        "params": selection.cost.params,
        "latency_seconds": None if latency is None else latency.seconds,
        "flops_share": selection.cost.flops / main.flops if main.flops else None,
        "params_share": selection.cost.params / main.params if main.params else None,
        "metric": profile.metric,
        "split": profile.split,
        "quality": selection.quality.model_dump(),
        "test": profile.exits[selection.exit - 1].test.model_dump(),
        "reason": selection.reason,
    }


def show(profile: Profile, selection: Selection) -> None:
    """Print a selection as a table of two columns, and its reason."""
    from rich.table import Table

    from anytime_lct.cli.screen import screen
    from anytime_lct.exits.budget import show_count, show_seconds
    from anytime_lct.exits.selector import show_quality

    cost, main = selection.cost, profile.cost(profile.num_groups)
    exit = profile.exits[selection.exit - 1]

    def share(part: int, total: int) -> str:
        return f" ({100 * part / total:.1f}% of the main network)" if total else ""

    table = Table(show_header=False)
    table.add_row("exit", f"{selection.exit} of {profile.num_groups}")
    table.add_row("FLOPs", show_count(cost.flops) + share(cost.flops, main.flops))
    table.add_row("parameters", show_count(cost.params) + share(cost.params, main.params))
    if exit.latency is not None:
        table.add_row("latency", f"{show_seconds(exit.latency.seconds)} ({exit.latency.engine})")
    if profile.split == "validation":
        table.add_row(f"validation {profile.metric}", show_quality(profile, selection.quality.value))
    low, high = (show_quality(profile, bound) for bound in (exit.test.low, exit.test.high))
    table.add_row(f"test {profile.metric}", f"{show_quality(profile, exit.test.value)} (95%: {low} to {high})")
    screen().print(table)
    typer.echo(f"Exit {selection.exit} is {selection.reason}.")
