"""Rows of a table without images, as arrays: a column of texts, one of lists, such as input_ids, or all of numbers.

    text, label                                   -> numbers of tokens (T,), the classes of `label`
    input_ids, attention_mask, label              -> numbers of tokens (T,), the classes of `label`
    id, length, width, colour, species            -> floats (2,), the classes of `species`; id and colour are left out

A column of texts has a usual name, or is the only one of words where there are no numbers. Labels are the
`ClassLabel`, or the column with a usual name, or the only one of words; floats make it regression, and so do whole
numbers that differ in most rows.
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
from anytime_lct.data.words import tokenised
from anytime_lct.errors import DataError
from anytime_lct.pixels import EXTENSIONS
from anytime_lct.recipes.recipe import DataRecipe

TEXTS = (
    "text", "sentence", "review", "content", "comment", "message", "description", "headline", "title", "body",
    "document", "tweet", "question", "query", "utterance", "abstract", "summary", "sms",
)  # fmt: skip
USUAL_LABELS = (*LABELS, "species", "y", "sentiment", "category", "topic", "intent", "rating", "stars", "score")
SEQUENCES = ("input_ids", "tokens", "x", "features", "values", "signal", "input", "inputs")
SOME = 1000  # rows of a column that are looked at
FEW = 20  # whole numbers that may be classes in any case
NUMBERS_OF_ROWS = ("id", "index", "idx", "unnamed: 0", "", "__index_level_0__")  # not what a network learns from


def has_images(recipe: DataRecipe, root: Path) -> bool:
    """Return whether a table holds images, or paths of image files in a named column; raises DataError."""
    table = splits(recipe, root)["train"]
    kinds = kinds_of(table)
    words = [column for column, kind in kinds.items() if "string" in kind]
    paths = [column for column in words if column in IMAGES]
    if recipe.input_column in words:
        paths += [recipe.input_column] if str(table[0][recipe.input_column]).lower().endswith(EXTENSIONS) else []
    return "image" in kinds.values() or bool(paths)


def give(recipe: DataRecipe, root: Path) -> Given:
    """Read the rows of hf:PATH; raises DataError, and ModuleNotFoundError without the library."""
    tables = splits(recipe, root)
    kinds = kinds_of(tables["train"])
    text = _text_column(recipe, tables["train"], kinds)
    label, names = _label_column(recipe, tables["train"], kinds, text)
    columns = [text] if text is not None else _columns(recipe, kinds, label)
    left_out = [column for column in kinds if column not in (*columns, label)]
    read = f"Samples are the column{'s' * (len(columns) > 1)} {', '.join(columns)}, labels {label}"
    notes = (f"{read}{'; left out: ' * bool(left_out)}{', '.join(left_out)}.",)
    names, labels = _labels({part: list(table[label]) for part, table in tables.items()}, names, recipe.name)
    is_numbers = labels["train"].dtype.kind == "f" and labels["train"].ndim == 1
    names = (label,) if is_numbers else names
    if text is not None:
        read_texts = tokenised({part: list(table[text]) for part, table in tables.items()}, recipe)
        pairs = {part: Pairs(x, labels[part]) for part, x in read_texts.parts.items()}
        return Given(recipe.name, dict(pairs), names, read_texts.tokens, notes + read_texts.notes, read_texts.tokenizer)
    samples = {part: _samples(table, columns, part, recipe.name) for part, table in tables.items()}
    return Given(recipe.name, {part: Pairs(x, labels[part]) for part, x in samples.items()}, names, notes=notes)


def _text_column(recipe: DataRecipe, table: Any, kinds: dict[str, str]) -> str | None:
    """Return the column of texts: the recipe's, one with a usual name, or the only one where there are no numbers."""
    words = [column for column, kind in kinds.items() if "string" in kind and column != recipe.label_column]
    if recipe.input_column is not None:
        return recipe.input_column if recipe.input_column in words else None
    texts = [column for column in words if _are_texts(table, column)]
    usual = [column for name in TEXTS for column in texts if column.lower() == name]
    others = [column for column in kinds if column not in words and column.lower() not in NUMBERS_OF_ROWS]
    labels = [column for column in others if kinds[column] == "classes" or column.lower() in USUAL_LABELS]
    only = texts if len(texts) == 1 and len(others) == len(labels) <= 1 else []
    return next(iter(usual or only), None)


def _are_texts(table: Any, column: str) -> bool:
    """Return whether most of some rows of a column of words differ, as names of classes do not."""
    some = table[:: max(1, len(table) // SOME)][column]
    return len(set(some)) > len(some) / 2


def _label_column(
    recipe: DataRecipe, table: Any, kinds: dict[str, str], text: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the column of the labels, and the names of its classes, () where it has none; raises DataError."""
    values = {column: kind for column, kind in kinds.items() if kind not in ("classes", "list") and column != text}
    classed = [column for column, kind in kinds.items() if kind == "classes"]
    words = [column for column, kind in values.items() if "string" in kind or kind == "bool"]
    usual = [column for name in USUAL_LABELS for column in values if column.lower() == name]
    rest = list(values) if text is not None else []
    label = chosen(recipe.name, "label", recipe.label_column, [classed, usual, words, rest], usual, table)
    return label, tuple(table.features[label].names) if label in classed else ()


def _labels(
    labels: dict[str, list[Any]], names: tuple[str, ...], data: str
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the names of classes, () where they have none, and labels as numbers; raises DataError."""
    if isinstance(labels["train"][0], str):
        names, labels = numbered(labels, names, data)
    arrays = {part: np.asarray(each) for part, each in labels.items()}
    if not names and _are_amounts(arrays["train"]):
        arrays = {part: each.astype(np.float64) for part, each in arrays.items()}
    return names, arrays


def _are_amounts(labels: NDArray[Any]) -> bool:
    """Return whether whole numbers are amounts, such as prices, not classes: most rows have one of their own."""
    return labels.dtype.kind in "iu" and len(np.unique(labels)) > max(FEW, len(labels) // 2)


def _columns(recipe: DataRecipe, kinds: dict[str, str], label: str) -> list[str]:
    """Return the column of lists, or all columns of numbers; raises DataError where there is none."""
    if recipe.input_column in kinds:
        return [recipe.input_column]
    numbers = [column for column, kind in kinds.items() if column != label and ("int" in kind or "float" in kind)]
    lists = [column for column, kind in kinds.items() if kind == "list"]
    if recipe.input_column is None:
        named = [column for column in SEQUENCES if column in lists] or (lists if len(lists) == 1 else [])
        numbers = [column for column in numbers if column.lower() not in NUMBERS_OF_ROWS]
        if named or (numbers and not lists):
            return named[:1] or numbers
    raise DataError(
        f"Expected a column of images, of texts, of lists of numbers, or columns of numbers in '{recipe.name}', got "
        f"{recipe.input_column or ', '.join(column for column in kinds if column != label) or 'none'}; name one with "
        f"--set data.input_column=NAME."
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
