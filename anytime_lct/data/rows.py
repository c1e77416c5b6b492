"""Rows of a table without images, as arrays: a column of lists, such as input_ids, or all columns of numbers.

    input_ids, attention_mask, label              -> numbers of tokens (T,), the classes of `label`
    id, length, width, colour, species            -> floats (2,), the classes of `species`; id and colour are left out

Labels are the `ClassLabel`, or the column with a usual name, or the only one of words; floats make it regression, and
so do whole numbers that differ in most rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.data.factory import Given
from anytime_lct.data.labels import numbered
from anytime_lct.data.npz import Pairs
from anytime_lct.data.tables import IMAGES, LABELS, chosen, kinds_of, splits
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import DataRecipe

SEQUENCES = ("input_ids", "tokens", "x", "features", "values", "signal", "input", "inputs")
FEW = 20  # whole numbers that may be classes in any case
NUMBERS_OF_ROWS = ("id", "index", "idx", "unnamed: 0", "", "__index_level_0__")  # not what a network learns from


def has_images(recipe: DataRecipe, root: Path) -> bool:
    """Return whether a table holds images, or paths of image files by a usual name; raises DataError."""
    kinds = kinds_of(splits(recipe, root)["train"])
    paths = [column for column in (*IMAGES, recipe.image_column) if column is not None]
    return "image" in kinds.values() or any("string" in kinds.get(column, "") for column in paths)


def give(recipe: DataRecipe, root: Path) -> Given:
    """Read the rows of hf:PATH; raises DataError, and ModuleNotFoundError without the library."""
    tables = splits(recipe, root)
    kinds = kinds_of(tables["train"])
    values = {column: kind for column, kind in kinds.items() if kind not in ("classes", "list")}
    classed = [column for column, kind in kinds.items() if kind == "classes"]
    words = [column for column, kind in values.items() if "string" in kind or kind == "bool"]
    usual = [column for column in values if column.lower() in (*LABELS, "species", "y")]
    label = chosen(recipe.name, "label", recipe.label_column, [classed, usual, words], usual, tables["train"])
    numbers = [column for column, kind in values.items() if column != label and ("int" in kind or "float" in kind)]
    lists = [column for column, kind in kinds.items() if kind == "list"]
    columns = [recipe.image_column] if recipe.image_column in kinds else _columns(recipe, lists, numbers)
    names = tuple(tables["train"].features[label].names) if label in classed else ()
    labels = {part: table[label] for part, table in tables.items()}
    if isinstance(labels["train"][0], str):
        names, labels = numbered({part: list(each) for part, each in labels.items()}, names, recipe.name)
    elif not names and _are_amounts(np.asarray(list(labels["train"]))):
        labels = {part: np.asarray(list(each), np.float64) for part, each in labels.items()}
    given = {
        part: Pairs(_samples(table, columns, part, recipe.name), np.asarray(list(labels[part])))
        for part, table in tables.items()
    }
    left_out = [column for column in kinds if column not in (*columns, label)]
    read = f"Samples are the column{'s' * (len(columns) > 1)} {', '.join(columns)}, labels {label}"
    notes = (f"{read}{'; left out: ' * bool(left_out)}{', '.join(left_out)}.",)
    is_numbers = given["train"].targets.dtype.kind == "f" and given["train"].targets.ndim == 1
    return Given(recipe.name, dict(given), (label,) if is_numbers else names, notes=notes)


def _are_amounts(labels: NDArray[Any]) -> bool:
    """Return whether whole numbers are amounts, such as prices, not classes: most rows have one of their own."""
    return labels.dtype.kind in "iu" and len(np.unique(labels)) > max(FEW, len(labels) // 2)


def _columns(recipe: DataRecipe, lists: list[str], numbers: list[str]) -> list[str]:
    """Return the column of lists, or all columns of numbers; raises DataError where there is none."""
    if recipe.image_column is None:
        named = [column for column in SEQUENCES if column in lists] or (lists if len(lists) == 1 else [])
        numbers = [column for column in numbers if column.lower() not in NUMBERS_OF_ROWS]
        if named or (numbers and not lists):
            return named[:1] or numbers
    raise DataError(
        f"Expected a column of images, one of lists of numbers, or columns of numbers in '{recipe.name}', got "
        f"{recipe.image_column or ', '.join((*lists, *numbers)) or 'none'}; name one with --set "
        f"data.image_column=NAME. Text needs a tokenizer first, which gives lists of numbers."
    )


def _samples(table: Any, columns: list[str], part: str, name: str) -> NDArray[Any]:
    """Return samples (N, ..); raises DataError where they are not numbers, or not of one shape."""
    numpy = table.with_format("numpy")
    try:
        if len(columns) == 1 and np.ndim(numpy[0][columns[0]]):
            return np.stack([np.asarray(each) for each in numpy[columns[0]]])
        return np.stack([np.asarray(numpy[column][:], np.float32) for column in columns], axis=1)
    except (ValueError, TypeError):
        raise DataError(
            f"Expected numbers of one shape in every row of the {part} part of '{name}', got others in "
            f"{', '.join(columns)}; pad sequences to one length, and fill what is missing."
        ) from None
