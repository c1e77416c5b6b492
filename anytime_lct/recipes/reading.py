"""Recipes read from TOML and `--set key=value`, completed with defaults, and written back.

A recipe that leaves a key out gets the paper's value for its task (Section V), or the value of the small built-in
data sets. The completed recipe is written into the run folder and says everything there is to say.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.defaults import BUILT_IN, PAPER_IMAGES, PAPER_TEXT, SCALED_INPUTS
from anytime_lct.recipes.recipe import TEXT, Recipe


def complete(given: dict[str, Any]) -> Recipe:
    """Fill what `given` leaves out with the defaults of its data set and check the whole.

    >>> complete({"data": {"name": "cifar10"}, "train": {"epochs": 10}}).groups.lr
    0.1

    Raises RecipeError naming the first key that is unknown or out of range.
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
    for cuts in (cut.get("places"), cut.get("shares")):
        if isinstance(cuts, list | tuple) and "groups" not in cut:
            merged["cut"]["groups"] = len(cast("list[Any]", cuts)) + 1
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(_sentence(error)) from None


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
    """Write the completed recipe as TOML (temporary name, then renamed), so that `read(path)` gives it back."""
    import tomli_w

    part = path.with_suffix(".part")
    part.write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    part.replace(path)


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


def _sentence(error: ValidationError) -> str:
    """Say the first thing that is wrong with a recipe: where, what was expected, what came."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _keys_beside(path)
        near = difflib.get_close_matches(path[-1], known, n=3)
        return f"The recipe has an unknown key '{where}'; did you mean {' or '.join(near or known)}?"
    if first["type"] == "missing":
        return f"The recipe needs a value for '{where}'; set it in the file or with --set {where}=VALUE."
    wanted = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):  # entries that do not go together
        return f"The recipe does not do: {wanted}."
    return f"The recipe's '{where}' is {first['input']!r}, which does not do: {wanted[0].lower()}{wanted[1:]}."


def _keys_beside(path: list[str]) -> list[str]:
    if len(path) == 1:
        return list(Recipe.model_fields)
    annotation = Recipe.model_fields[path[0]].annotation
    section = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return list(cast(type[BaseModel], section).model_fields)
