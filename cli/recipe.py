"""`anytime-lct recipe`: every key of a recipe, with its values, its default and what it is."""

from __future__ import annotations

from typing import Annotated

import typer

from anytime_lct.cli.screen import print_json
from anytime_lct.cli.train import DATA, MODEL, SET

KEY = "A key (groups.lr), a table (groups), or an entry of any table (lr); default: all."
EXPLAIN = "Write above every key what it is and which values it takes."


def recipe(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help=KEY)] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help=DATA)] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help=MODEL)] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Training method.")] = None,
    source: Annotated[
        str | None, typer.Option("--recipe", metavar="FILE|NAME", help="Show the values of this recipe instead.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET)] = None,
    explain: Annotated[bool, typer.Option("--explain", help=EXPLAIN)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the keys as one JSON array.")] = False,
) -> None:
    """Print every key of a recipe with its default for this data and network, as a file for `train --recipe`.

    With --explain, or for a KEY, comments say what each key is and which values it takes. A key without a value is not
    set, or, where data or network are not there, follows from them.

    Example: anytime-lct recipe --data text --explain
    """
    import dataclasses
    import json
    import shutil

    from anytime_lct.cli.train import with_settings
    from anytime_lct.data.datasets import expect_known
    from anytime_lct.recipes import keys, reading
    from anytime_lct.training.methods.table import row_of
    from anytime_lct.verbs.reference import fitted, reference

    flags = {"data.name": data, "model.name": model, "train.method": method}
    overrides = with_settings({name: value for name, value in flags.items() if value is not None}, settings)
    run_recipe = reading.read(source, overrides)
    expect_known(run_recipe.data.name)
    row_of(run_recipe.train.method)  # raises for an unknown method
    all_keys = reference(fitted(run_recipe))
    shown = all_keys if key is None else keys.matching(all_keys, key)
    if as_json:
        print_json(json.dumps([dataclasses.asdict(each) for each in shown]))
    else:
        width = min(100, shutil.get_terminal_size().columns)
        typer.echo(keys.as_toml(shown, explain=explain or key is not None, width=width))
