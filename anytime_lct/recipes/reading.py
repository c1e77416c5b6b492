"""Recipes read from TOML and `--set key=value`, completed with defaults, and written back.

A recipe that leaves a key out gets the paper's value for its task (Section V), or the value of the small built-in
data sets. The completed recipe is written into the run folder and says everything there is to say.
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
from anytime_lct.recipes.defaults import BUILT_IN, PAPER_IMAGES, PAPER_TEXT, SCALED_INPUTS
from anytime_lct.recipes.recipe import TEXT, Recipe, sentence


def complete(given: dict[str, Any]) -> Recipe:
    """Fill what `given` leaves out with the defaults of its data set and check the whole.

    >>> complete({"data": {"name": "cifar10"}, "train": {"epochs": 10}}).groups.lr
    0.1

    Raises RecipeError naming the first key that is unknown or out of range. A table that is none of a recipe's own may
    be that of a training method, and stays as it is (`training.methods.table.checked`).
    """
    name = str(_table(given, "data").get("name", "digits"))
    empty: dict[str, Any] = {key: {} for key in Recipe.model_fields}
    layers = [empty, PAPER_TEXT if name in TEXT else PAPER_IMAGES, BUILT_IN.get(name, {})]
    if "name" in _table(given, "model"):  # options of a default network do not pass to another network
        layers = [{**layer, "model": cast("dict[str, Any]", {})} for layer in layers]
    for table in ("groups", "critics"):  # nor do those of a default optimizer to another one
        named = _table(given, table).get("name")
        if named is not None:
            other = [_table(layer, table).get("name", named) != named for layer in layers]
            layers = [{**layer, table: {}} if foreign else layer for layer, foreign in zip(layers, other, strict=True)]
    merged: dict[str, Any] = {}
    for layer in [*layers, given]:
        for key, value in layer.items():
            merged[key] = {**_table(merged, key), **_table(layer, key)} if isinstance(value, dict) else value
    if _table(merged, "train").get("weights") == "default" and _table(merged, "model").get("name") in SCALED_INPUTS:
        merged["model"].setdefault("transform_input", True)
    cut = _table(given, "cut")
    if "groups" not in cut and (cut.get("places") or cut.get("shares")):
        merged["cut"].pop("groups", None)  # they say how many themselves
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(sentence(error, Recipe)) from None


def read(
    source: str | Path | None, overrides: dict[str, Any] | None = None, otherwise: dict[str, Any] | None = None
) -> Recipe:
    """Read a recipe from a TOML file, or from a shipped recipe's name, with `overrides` on top, and complete it.

    `overrides` maps dotted keys to values (`assignment`), `otherwise` those that neither names. Raises RecipeError.
    """
    given = _parse(source) if source is not None else {}
    named = {*(overrides or {}), *(f"{table}.{entry}" for table in given for entry in _table(given, table))}
    weak = {key: value for key, value in (otherwise or {}).items() if key not in named}
    for key, value in {**weak, **(overrides or {})}.items():
        table, _, entry = key.partition(".")
        if not entry or "." in entry:
            raise RecipeError(
                f"Expected a setting like train.epochs=10, got the key '{key}'; its first part is one of "
                f"{', '.join(Recipe.model_fields)}."
            )
        section = given.setdefault(table, {})
        if isinstance(section, dict):
            section[entry] = value
    return complete(given)


# Keys whose values are words, or a list of them, whatever they look like.
WORDS = ("cut.places", "data.name", "data.root", "data.path", "model.name", "train.weights", "train.device")


def assignment(text: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as TOML would, or as a bare word.

    >>> assignment("cut.places=layer1,layer2")
    ('cut.places', ['layer1', 'layer2'])
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise RecipeError(f"Expected a setting of the form key=value, got '{text}'; write for example train.epochs=10.")
    if key in WORDS and value[0] not in "[\"'":
        return key, [part.strip() for part in value.split(",") if part.strip()] if key == "cut.places" else value
    try:
        found = tomllib.loads(f"value = {value}")["value"]
        return key, [found] if key in ("data.mean", "data.std") and value[0] != "[" else found
    except tomllib.TOMLDecodeError:
        if key in ("cut.shares", "critic.depth") or "," in value:
            return key, [_word(part) for part in value.split(",") if part.strip()]
        return key, value


def write(recipe: Recipe, path: Path) -> None:
    """Write the completed recipe as TOML, whole or not at all, so that `read(path)` gives it back."""
    import tomli_w

    disk.write(path, tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)), RecipeError)


def shipped() -> tuple[str, ...]:
    """Names of the recipes that come with the toolkit."""
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


def _table(given: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a table of the file, empty where it is missing or is no table."""
    table = given.get(key)
    return cast("dict[str, Any]", table) if isinstance(table, dict) else {}


def _word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()
