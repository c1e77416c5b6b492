"""Recipes read from TOML and `--set key=value`, completed with defaults, and written back.

A key that a recipe leaves out gets the default of its task or of its data set (`defaults`); what depends on the network
or on the number of samples stays open until these are known (`fitting`, `data.datasets`). The recipe in a run folder
names every value.
"""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from anytime_lct import disk
from anytime_lct.errors import RecipeError
from anytime_lct.recipes.defaults import ANY, BUILT_IN, IMAGES, LSTM, SCALED_INPUTS, TEXTS
from anytime_lct.recipes.recipe import TEXT, Recipe
from anytime_lct.recipes.sentences import sentence


def complete(tables: dict[str, Any]) -> Recipe:
    """Add the defaults of the data set to the keys in `tables`, and check the recipe.

    >>> complete({"data": {"name": "cifar10"}, "train": {"epochs": 10}}).groups_schedule.name
    'one-cycle'

    Raises RecipeError naming the first key that is unknown or out of range. A table that `Recipe` does not define may
    belong to a training method, and is checked later (`training.methods.table.checked`).
    """
    name = str(_table(tables, "data").get("name", "digits"))
    empty: dict[str, Any] = {key: {} for key in Recipe.model_fields}
    layers = [empty, TEXTS if name in TEXT else IMAGES, BUILT_IN.get(name, {})]
    if name.startswith(("npz:", "hf:")) or ".py:" in name:
        layers.append(ANY)
    if name in TEXT and _table(tables, "model").get("name", "lstm") == "lstm":
        layers.append(LSTM)
    if "name" in _table(tables, "model"):  # another network does not get the options of the default one
        layers = [{**layer, "model": cast("dict[str, Any]", {})} for layer in layers]
    if _table(tables, "groups").get("name", "adam") != "adam":  # nor another optimizer the rate of the default one
        layers = [{**layer, "groups": cast("dict[str, Any]", {})} for layer in layers]
    merged: dict[str, Any] = {}
    for layer in [*layers, tables]:
        for key, value in layer.items():
            merged[key] = {**_table(merged, key), **_table(layer, key)} if isinstance(value, dict) else value
    if _table(merged, "train").get("weights") == "default" and _table(merged, "model").get("name") in SCALED_INPUTS:
        merged["model"].setdefault("transform_input", True)
    if "name" not in merged["critics_schedule"]:
        merged["critics_schedule"] = {**merged["groups_schedule"], **merged["critics_schedule"]}
    cut = _table(tables, "cut")
    if "groups" not in cut and (cut.get("places") or cut.get("shares")):
        merged["cut"].pop("groups", None)  # places and shares determine the number of groups
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(sentence(error, Recipe)) from None


def read(
    source: str | Path | None, overrides: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None
) -> Recipe:
    """Read a recipe from a TOML file, or from a shipped recipe's name, with `overrides` on top, and complete it.

    `overrides` and `defaults` map dotted keys to values (`assignment`); a default counts where neither the file nor
    the overrides have the key. Raises RecipeError.
    """
    tables = _parse(source) if source is not None else {}
    keys = {*(overrides or {}), *(f"{table}.{entry}" for table in tables for entry in _table(tables, table))}
    used_defaults = {key: value for key, value in (defaults or {}).items() if key not in keys}
    for key, value in {**used_defaults, **(overrides or {})}.items():
        table, _, entry = key.partition(".")
        if not entry or "." in entry:
            raise RecipeError(
                f"Expected a setting like train.epochs=10, got the key '{key}'; its first part is one of "
                f"{', '.join(Recipe.model_fields)}."
            )
        section = tables.setdefault(table, {})
        if isinstance(section, dict):
            section[entry] = value
    return complete(tables)


# Keys whose values are words, or a list of words, even where they look like numbers.
WORD_KEYS = (
    "cut.places", "data.name", "data.root", "data.path", "data.input_column", "data.label_column", "model.name",
    "train.log", "train.weights", "train.device",
)  # fmt: skip

LIST_KEYS = ("cut.places", "train.log")
NUMBER_KEYS = ("data.mean", "data.std", "cut.shares")  # whose values are lists of numbers, also where there is one


def assignment(text: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as TOML, or as a bare word.

    >>> assignment("cut.places=layer1,layer2")
    ('cut.places', ['layer1', 'layer2'])
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise RecipeError(f"Expected a setting of the form key=value, got '{text}'; write for example train.epochs=10.")
    if key in WORD_KEYS and value[0] not in "[\"'":
        return key, [part.strip() for part in value.split(",") if part.strip()] if key in LIST_KEYS else value
    try:
        literal = tomllib.loads(f"value = {value}")["value"]
        return key, [literal] if key in NUMBER_KEYS and value[0] != "[" else literal
    except tomllib.TOMLDecodeError:
        if key in ("cut.shares", "critic.depth") or "," in value:
            return key, [_word(part) for part in value.split(",") if part.strip()]
        return key, value


def write(recipe: Recipe, path: Path) -> None:
    """Write the completed recipe as TOML, whole or not at all; `read(path)` returns an equal one."""
    import tomli_w

    disk.write(path, tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)), RecipeError)


def shipped() -> tuple[str, ...]:
    """Return the names of the recipes that come with the toolkit."""
    folder = resources.files("anytime_lct") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def _parse(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if str(source) in shipped() and not path.exists():
        text = (resources.files("anytime_lct") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"Expected a recipe file or one of the shipped recipes ({', '.join(shipped())}), "
            f"got '{source}', which cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"Expected TOML in the recipe '{source}', but it does not parse: {error}.") from None


def _table(tables: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a table of the file, empty where it is missing or no table."""
    table = tables.get(key)
    return cast("dict[str, Any]", table) if isinstance(table, dict) else {}


def _word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()
