"""The keys of a recipe, each with its values, its default and one line of what it is, from the models themselves."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.recipe import Section


@dataclass(frozen=True)
class RecipeKey:
    """A key by its dotted name; `default` is None where the network, the data or the method decides, or none is set."""

    name: str
    values: str
    default: Any
    text: str

    @property
    def table(self) -> str:
        return self.name.partition(".")[0]

    @property
    def entry(self) -> str:
        return self.name.partition(".")[2]


def keys_of(
    name: str, kind: type[Section], defaults: Mapping[str, Any], choices: Mapping[str, Sequence[str]]
) -> list[RecipeKey]:
    """Return the keys of the table `name`, whose model is `kind`.

    `defaults` are the values of a completed table. `choices` name the values of keys whose type is open.

    >>> keys_of("groups", OptimizerRecipe, {"lr": 0.1}, {})[1]                         # doctest: +SKIP
    RecipeKey(name='groups.lr', values='a number above 0', default=0.1, text='Learning rate, before the schedule.')
    """
    keys: list[RecipeKey] = []
    for entry, schema in kind.model_json_schema()["properties"].items():
        full = f"{name}.{entry}"
        values = " | ".join(choices[full]) if full in choices else values_of(schema)
        keys.append(RecipeKey(full, values, defaults.get(entry), schema.get("description", "")))
    return keys


def matching(keys: Sequence[RecipeKey], name: str) -> list[RecipeKey]:
    """Return the key of a full name, those of a table, or those of an entry in any table; raises RecipeError.

    >>> [key.name for key in matching(keys, "lr")]                                     # doctest: +SKIP
    ['groups.lr', 'critics.lr']
    """
    for ways in (
        [key for key in keys if key.name == name],
        [key for key in keys if key.table == name],
        [key for key in keys if key.entry == name],
    ):
        if ways:
            return ways
    known = dict.fromkeys([*(key.name for key in keys), *(key.table for key in keys), *(key.entry for key in keys)])
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"tables are {', '.join({key.table: 0 for key in keys})}."
    raise RecipeError(f"The recipe has no key '{name}'; {hint}")


def values_of(schema: Mapping[str, Any]) -> str:
    """Say in words which values a field takes, from its JSON schema.

    >>> values_of({"type": "number", "minimum": 0, "exclusiveMaximum": 1})
    'a number from 0 to below 1'
    """
    if "anyOf" in schema:
        return " or ".join(values_of(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(values_of(item) for item in schema['prefixItems'])}]"
        return f"[{values_of(schema['items'])}, ..]"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    return {"boolean": "true | false", "string": "text"}.get(str(kind), str(kind))


def _range(schema: Mapping[str, Any]) -> str:
    words = (
        ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "to below"),
    )  # fmt: skip
    return "".join(f" {word} {_number(schema[bound])}" for bound, word in words if bound in schema)


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def show_value(value: Any) -> str:
    """Format a value as TOML, as in a recipe file; nothing for None.

    >>> show_value(["layer1", 2])
    '["layer1", 2]'
    """
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def as_toml(keys: Iterable[RecipeKey], *, explain: bool, width: int = 80) -> str:
    """Write keys as a recipe file; with `explain`, each after comments of what it is and of its values."""
    lines: list[str] = []
    table = ""
    for key in keys:
        if key.table != table:
            table = key.table
            lines += [*([""] if lines else []), f"[{table}]"]
        if explain:
            wrap = textwrap.TextWrapper(
                width, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
            )
            lines += wrap.wrap(key.text) + (wrap.wrap(f"Values: {key.values}") if key.values else [])
        lines.append(f"# {key.entry} =" if key.default is None else f"{key.entry} = {show_value(key.default)}")
    return "\n".join(lines)


def as_markdown(keys: Iterable[RecipeKey], on_text: Mapping[str, Any]) -> str:
    """Write keys as one Markdown table; `on_text` are the defaults of text, added where they differ."""
    rows = ["| key | what it is | values | default |", "|---|---|---|---|"]
    for key in keys:
        default, text = (f"`{show_value(value)}`" for value in (key.default, on_text.get(key.name)))
        cell = (default if default == text else f"{default}; text: {text}").replace("``", "-")
        values = key.values.replace(" | ", ", ")
        rows.append(f"| `{key.entry}` | {key.text} | {values} | {cell} |")
    return "\n".join(rows)
