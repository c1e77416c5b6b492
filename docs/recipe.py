"""The reference of a recipe as a page, from the same keys as `anytime-lct recipe`.

python docs/recipe.py        writes docs/recipe.md
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from anytime_lct.models import networks
from anytime_lct.recipes import keys, reading
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.training.methods.table import METHODS
from anytime_lct.verbs import reference

PAGE = Path(__file__).parent / "recipe.md"
OPENING = """# The recipe

Every value that a training run depends on is a key of its recipe, in a TOML file for `train --recipe`, or as
`--set table.key=value`. `anytime-lct recipe` writes such a file with the defaults of a data set and a network:

```console
anytime-lct recipe --data fashion-mnist --model resnet20 > recipe.toml
anytime-lct recipe --explain cut
```

Defaults below are those of images, and those of text where they differ; `-` is not set, or follows from the network,
the data or other keys. The small built-in data sets have their own: `anytime-lct recipe --data digits`.
`python docs/recipe.py` writes this page.
"""


def page() -> str:
    """Return docs/recipe.md as it should be."""
    images, text = (reference(reading.complete({"data": {"name": name}})) for name in ("fashion-mnist", "text"))
    on_text = {key.name: key.default for key in text}
    parts = [OPENING]
    for table, rows in groupby(images, key=lambda key: key.table):
        listed = [key for key in rows if table != "model" or key.entry == "name"]
        parts.append(f"\n## {table}\n\n{_about(table)}\n\n{keys.as_markdown(listed, on_text)}\n")
        if table == "model":
            parts.append(f"\n{_networks()}\n")
    return "".join(parts)


def _about(table: str) -> str:
    """Return the first sentence about a table."""
    field = Recipe.model_fields.get(table)
    kind = METHODS[table].options if field is None else field.annotation
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _networks() -> str:
    """Return a table of the networks with their options."""
    rows = ["| network | options |", "|---|---|"]
    for name in networks.NAMES:
        options = (f"`{key}` = {keys.show_value(value)}" for key, value in networks.default_options(name).items())
        rows.append(f"| {name} | {', '.join(options)} |")
    texts = " ".join(f"`{key}`: {text}" for key, text in networks.OPTION_TEXTS.items())
    return "\n".join(rows) + f"\n\n{texts} Networks of other sources take the options of their constructors."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
