"""The reference of a recipe: every key with its values, its default for the data and the network, and what it is."""

from __future__ import annotations

from anytime_lct.data import datasets
from anytime_lct.data.datasets import DATA_SETS
from anytime_lct.errors import LCTError
from anytime_lct.models import networks
from anytime_lct.recipes.keys import RecipeKey, keys_of
from anytime_lct.recipes.recipe import Recipe, Section
from anytime_lct.training.methods.table import METHODS
from anytime_lct.training.prepare import fit_data

CHOICES = {
    "data.name": tuple(DATA_SETS),
    "model.name": (*networks.NAMES, *networks.SOURCE_FORMS),
    "train.method": tuple(METHODS),
}


def fitted(recipe: Recipe) -> Recipe:
    """Return a recipe with what follows from its data and its network, where both are there; else as it is."""
    try:
        return fit_data(datasets.sized(recipe), datasets.from_recipe(recipe))
    except LCTError:
        return recipe


def reference(recipe: Recipe) -> list[RecipeKey]:
    """Return the keys of all tables, those of training methods last, with the values of `recipe` as defaults.

    >>> next(key.default for key in reference(complete({})) if key.name == "model.depth")  # doctest: +SKIP
    14
    """
    values = recipe.model_dump(mode="json")
    tables: dict[str, type[Section]] = {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    options = {method: row.options for method, row in METHODS.items() if row.options is not None}
    keys: list[RecipeKey] = []
    for name, kind in tables.items():
        keys += keys_of(name, kind, values[name], CHOICES)
        if name == "model":
            own = networks.default_options(recipe.model.name)
            texts = networks.OPTION_TEXTS
            keys += [
                RecipeKey(f"model.{option}", "", values["model"].get(option, default), texts.get(option, ""))
                for option, default in own.items()
            ]
    for name, kind in options.items():
        keys += keys_of(name, kind, recipe.section(name, kind).model_dump(mode="json"), CHOICES)
    return keys
