"""`anytime-lct inspect`: where a network can be cut and what its exits would cost, before anything is trained."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from anytime_lct.analysis.inspection import Inspection


def inspect(
    model: Annotated[
        str, typer.Argument(help="Network: a name of train --model, torchvision:NAME, timm:NAME, or file.py:FACTORY.")
    ],
    input_: Annotated[
        str, typer.Option("--input", metavar="CxHxW|T", help="Shape of one input: 3x224x224, or characters of a text.")
    ],
    classes: Annotated[int, typer.Option(min=1, help="Number of classes, or of symbols of a text.")] = 1000,
    groups: Annotated[int | None, typer.Option(min=1, help="Number of layer groups N; default: 4.")] = None,
    places: Annotated[
        str | None, typer.Option(metavar="A,B,..", help="Cut after these modules instead of the balanced choice.")
    ] = None,
    budget_flops: Annotated[
        str | None,
        typer.Option(metavar="SHARES", help="Cut for exits at these shares of the main network, as train does."),
    ] = None,
    critic: Annotated[str, typer.Option(help="Critics: residual, slim, paper, paper-imagenet.")] = "residual",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="model.KEY=VALUE", help="An option of the network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show legal cuts, the balanced choice, and what groups, critics and exits cost.

    A network that cannot be cut says why, with the line of its code, and what to do.

    Example: anytime-lct inspect torchvision:resnet18 --input 3x224x224 --groups 3
    """
    import dataclasses

    from anytime_lct.analysis.inspection import inspect as inspecting
    from anytime_lct.cli.screen import screen
    from anytime_lct.cli.train import shares_of
    from anytime_lct.models import networks as models
    from anytime_lct.recipes import reading as recipes
    from anytime_lct.run_folder.build import example_input
    from anytime_lct.task import Facts

    shape, options = _shape(input_), _options(settings)
    given = {
        "groups": groups,
        "places": places.split(",") if places else None,
        "shares": shares_of(budget_flops) if budget_flops else None,
    }
    cut = {"by": "balanced", **{key: value for key, value in given.items() if value is not None}}
    recipe = recipes.complete({"cut": cut, "critic": {"kind": critic}})
    facts = Facts("", "classification" if len(shape) > 1 else "language-model", shape, classes, ())
    found = inspecting(
        models.build(model, shape, classes, **options),
        example_input(facts),
        recipe.cut,
        recipe.critic,
        facts.task,
    )
    if as_json:
        import json

        told = {"model": model, "input": shape, "classes": classes}
        plain = dataclasses.asdict(found)
        typer.echo(json.dumps(told | plain, default=lambda cost: cost.model_dump()))
        return
    console = screen()
    console.print(_summary(model, input_, found), highlight=False, soft_wrap=True)
    if found.places:
        console.print(_cuts(found))
    console.print(_parts(found))
    for kind, reason in _whole(found).items():
        console.print(f"Taken as one step: {kind}: {reason}.", highlight=False, soft_wrap=True, style="dim")
    if dear := [str(i) for i, part in enumerate(found.parts[:-1], 1) if part.exit.flops >= found.main.flops]:
        console.print(
            f"No cheaper than the main network: exit {' and '.join(dear)}. Try --critic slim, other --places, or "
            f"--budget-flops 0.3,0.6.",
            highlight=False,
            soft_wrap=True,
        )
    chosen = ",".join(part.ends for part in found.parts[:-1])
    told = [*(settings or []), f"cut.places={chosen}" if chosen else "cut.groups=1", f"critic.kind={critic}"]
    more = " ".join(f"--set {shlex.quote(setting)}" for setting in told)
    console.print(
        f"Next, on data with inputs of {input_}: anytime-lct train --data DATA --model {model} {more}",
        highlight=False,
        soft_wrap=True,
    )


def _summary(model: str, input_: str, found: Inspection) -> str:
    from anytime_lct.exits.budget import show_count

    return (
        f"{model} on {input_}: {show_count(found.main.flops)} multiply-adds (one counts one), "
        f"{show_count(found.main.params)} parameters. One tensor crosses at {found.legal} cuts, "
        f"{len(found.places)} of them at the ends of blocks:"
    )


def _cuts(found: Inspection) -> Table:
    from rich.table import Table

    grid = Table(title="Where it can be cut", title_justify="left")
    for name in ("after", "what crosses", "shape", "share of the cost before"):
        grid.add_column(name, justify="right" if name.startswith("share") else "left", overflow="fold")
    for place in found.places:
        share = f"{place.flops / max(1, found.main.flops):.1%}"
        grid.add_row(place.name, place.crosses, "x".join(map(str, place.shape)), share)
    return grid


def _parts(found: Inspection) -> Table:
    from rich.table import Table

    from anytime_lct.exits.budget import show_count

    grid = Table(title=f"Cut in {len(found.parts)}, critics included in exits", title_justify="left")
    for name in ("exit", "after", "group", "critic", "exit", "share", "parameters"):
        grid.add_column(name, justify="left" if name == "after" else "right", overflow="fold")
    for i, part in enumerate(found.parts, start=1):
        costs = ["-" if cost is None else show_count(cost.flops) for cost in (part.group, part.critic, part.exit)]
        share = f"{part.exit.flops / max(1, found.main.flops):.1%}"
        grid.add_row(str(i) if part.critic else "main", part.ends, *costs, share, show_count(part.exit.params))
    return grid


def _whole(found: Inspection) -> dict[str, str]:
    """Modules taken whole for the same reason, as `first path and 11 more`."""
    paths: dict[str, list[str]] = {}
    for path, reason in found.whole.items():
        paths.setdefault(reason, []).append(path)
    return {
        f"{own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''}": reason.rstrip(".")
        for reason, own in paths.items()
    }


def _shape(text: str) -> tuple[int, ...]:
    from anytime_lct.errors import ModelError

    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ModelError(f"Expected --input as 3x224x224 (channels, height, width) or 100 (characters), got '{text}'.")
    return shape


def _options(settings: list[str] | None) -> dict[str, Any]:
    from anytime_lct.errors import ModelError
    from anytime_lct.recipes import reading as recipes

    given = dict(recipes.assignment(text) for text in settings or [])
    for key in given:
        if not key.startswith("model."):
            raise ModelError(f"Expected an option of the network, such as model.width=8, got '{key}'; leave it out.")
    return {key.removeprefix("model."): value for key, value in given.items()}
