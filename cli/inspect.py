"""`anytime-lct inspect`: where a network can be cut and what its exits cost, before training."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytime_lct.cli.screen import print_json
from anytime_lct.cli.train import BUDGETS

if TYPE_CHECKING:
    from rich.table import Table

    from anytime_lct.analysis.inspection import Inspection
    from anytime_lct.exits.tasks import InputKind


def inspect(
    model: Annotated[
        str, typer.Argument(help="Network: a name of train --model, torchvision:NAME, timm:NAME, or file.py:FACTORY.")
    ],
    input_: Annotated[
        str,
        typer.Option("--input", metavar="CxHxW|T|..", help="Shape of one input: 3x224x224, or characters of a text."),
    ],
    classes: Annotated[int, typer.Option(min=1, help="Number of classes, or of symbols of a text.")] = 1000,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Inputs are numbers of N tokens; 0: of floats, no images.")
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Number of layer groups N; default: 4, or as many as it can be cut into.")
    ] = None,
    places: Annotated[str | None, typer.Option(metavar="A,B,..", help="Cut after these modules instead.")] = None,
    budget_flops: Annotated[
        str | None,
        typer.Option(metavar="B,B,..", help=BUDGETS),
    ] = None,
    critic: Annotated[
        str | None, typer.Option(help="Critics: residual (default), slim, paper, paper-imagenet.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option of the network, as model.width=8, or cut.., critic.."
        ),
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help="Also try to export groups and critics to ONNX, with fresh weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show legal cuts, the choice of `train`, and the cost of groups, critics and exits.

    With --export, what would fail after a long training fails here.

    Where a network cannot be cut, the error names the line of its code and what to do. --input with another number of
    sizes than three is of numbers, as 128x9; with --tokens N it is of tokens, whose sequence gets a class.

    Example: anytime-lct inspect torchvision:resnet18 --input 3x64x64 --groups 3
    """
    import dataclasses

    from anytime_lct import savings
    from anytime_lct.analysis.inspection import inspect as inspect_network
    from anytime_lct.cli.screen import say, screen
    from anytime_lct.cli.train import shares_of
    from anytime_lct.critics.places import kind_of
    from anytime_lct.models import networks
    from anytime_lct.recipes import reading
    from anytime_lct.recipes.recipe import CutRecipe
    from anytime_lct.run_folder.build import example_input
    from anytime_lct.task import Facts

    shape, tables = _shape(input_), _tables(settings)
    tokens = 0 if tokens is None and len(shape) not in (1, 3) else tokens
    flags = {
        "groups": groups,
        "places": places.split(",") if places else None,
        "shares": shares_of(budget_flops) if budget_flops else None,
    }
    cut = {**{key: value for key, value in flags.items() if value is not None}, **tables["cut"]}
    recipe = reading.complete({"cut": cut, "critic": {**({"kind": critic} if critic else {}), **tables["critic"]}})
    if tokens is None and len(shape) == 1:
        facts = Facts("", "language-model", shape, classes, ())
    else:
        kind: InputKind = "image" if tokens is None else "array"
        facts = Facts("", "classification", shape, classes, (), inputs=kind, tokens=tokens or 0)
    network, example = networks.build(model, shape, classes, tokens, **tables["model"]), example_input(facts)
    inspection = inspect_network(network, example, recipe.cut, recipe.critic, facts.task)
    costs, ends = [part.exit.flops for part in inspection.parts], [part.ends for part in inspection.parts[:-1]]
    own = kind_of(network, recipe.critic) == "own"
    targets = recipe.cut.shares if own else recipe.cut.targets(len(inspection.parts))
    there = CutRecipe(places=tuple(ends), shares=targets, groups=len(inspection.parts))  # as the command below cuts
    difference = None
    if export:
        from anytime_lct.export.write import try_export
        from anytime_lct.network import LCTNetwork

        difference = try_export(LCTNetwork.cut(network, example, there, recipe.critic, facts.task), facts)
    notes = [
        savings.fewer_groups(recipe.cut, ends),
        savings.warning(costs, network, example, there, recipe.critic, facts.task),
    ]
    notes = [note for note in notes if note]
    if as_json:
        import json

        arguments = {
            "model": model,
            "input": shape,
            "classes": classes,
            "export_difference": difference,
            "notes": notes,
        }
        print_json(json.dumps(arguments | dataclasses.asdict(inspection), default=lambda cost: cost.model_dump()))
        return
    console = screen()
    say(console, _summary(model, input_, inspection))
    if inspection.places:
        console.print(_cuts(inspection))
    console.print(_parts(inspection))
    for modules, reason in _untraced(inspection).items():
        say(console, f"Treated as one step: {modules}: {reason}.", "dim")
    if difference is not None:
        console.print(
            f"Exported to ONNX with fresh weights: the largest difference of logits from torch is {difference:.1e}.",
            highlight=False,
            soft_wrap=True,
        )
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    cuts, budgets = ",".join(ends), ",".join(f"{share:.4g}" for share in targets)
    keys = [text for text in settings or [] if text.strip().startswith(("model.", "critic.depth"))]
    keys += [f"cut.places={cuts}" if cuts else "cut.groups=1", *([f"cut.shares={budgets}"] if targets else [])]
    keys += [f"critic.kind={kind_of(network, recipe.critic)}"]
    set_flags = " ".join(f"--set {shlex.quote(key)}" for key in keys)
    console.print(
        f"Next, on data with inputs of {input_}: anytime-lct train --data DATA --model {model} {set_flags}",
        highlight=False,
        soft_wrap=True,
    )


def _summary(model: str, input_: str, inspection: Inspection) -> str:
    from anytime_lct.exits.budget import show_count

    return (
        f"{model} on {input_}: {show_count(inspection.main.flops)} multiply-adds (one counts one), "
        f"{show_count(inspection.main.params)} parameters. One tensor crosses at {inspection.legal} cuts, "
        f"{len(inspection.places)} of them at the ends of blocks:"
    )


def _cuts(inspection: Inspection) -> Table:
    from anytime_lct.cli.screen import grid

    rows = [
        [cut.name, cut.crosses, "x".join(map(str, cut.shape)), f"{cut.flops / max(1, inspection.main.flops):.1%}"]
        for cut in inspection.places
    ]
    columns = ("after", "what crosses", "shape", "share of the cost before")
    return grid(columns, rows, title="Where it can be cut", left=columns[:-1])


def _parts(inspection: Inspection) -> Table:
    from anytime_lct.cli.screen import grid
    from anytime_lct.exits.budget import show_count

    rows: list[list[str]] = []
    for i, part in enumerate(inspection.parts, start=1):
        costs = ["-" if cost is None else show_count(cost.flops) for cost in (part.group, part.critic, part.exit)]
        share = f"{part.exit.flops / max(1, inspection.main.flops):.1%}"
        name = str(i) if part.critic else "main"
        rows.append([name, part.ends, *costs, share, show_count(part.exit.params)])
    columns = ("exit", "after", "group", "critic", "whole exit", "share", "parameters")
    title = f"Cut in {len(inspection.parts)}, critics included in exits"
    return grid(columns, rows, title=title, left=("exit", "after"))


def _untraced(inspection: Inspection) -> dict[str, str]:
    """Return why modules are one step each, by modules of one reason, as `first path and 11 more`."""
    paths: dict[str, list[str]] = {}
    for path, reason in inspection.whole.items():
        paths.setdefault(reason, []).append(path)
    return {
        f"{modules[0]}{f' and {len(modules) - 1} more' if len(modules) > 1 else ''}": reason.rstrip(".")
        for reason, modules in paths.items()
    }


def _shape(text: str) -> tuple[int, ...]:
    from anytime_lct.errors import ModelError

    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ModelError(
            f"Expected --input as 3x224x224 (channels, height, width), 100 (characters) or any other shape of numbers, "
            f"as 9x128, got '{text}'."
        )
    return shape


def _tables(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """Return the tables model, cut and critic of a recipe; raises ModelError for a key of any other."""
    from anytime_lct.errors import ModelError
    from anytime_lct.recipes import reading

    tables: dict[str, dict[str, Any]] = {"model": {}, "cut": {}, "critic": {}}
    for key, value in (reading.assignment(text) for text in settings or []):
        table, _, entry = key.partition(".")
        if table not in tables or not entry:
            raise ModelError(
                f"Expected an option of the network, such as model.width=8, or a key of cut or critic, got '{key}'; "
                f"leave it out."
            )
        tables[table][entry] = value
    return tables
