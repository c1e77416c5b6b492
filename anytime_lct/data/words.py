"""Texts with a label each become numbers of tokens, by a tokenizer that is made from the training texts, or the user's.

The tokenizer is data as the vocabulary of a text is: run folder and bundle have it, so that texts can be asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct import texts
from anytime_lct.data.factory import Given
from anytime_lct.data.items import Items, stacked
from anytime_lct.data.npz import Pairs
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import DataRecipe


@dataclass(frozen=True)
class Tokenised:
    """Numbers of tokens (N, T) of every part, how many tokens there are, and the tokenizer as JSON."""

    parts: dict[str, NDArray[np.int64]]
    tokens: int
    tokenizer: str
    notes: tuple[str, ...]


def tokenised(parts: Mapping[str, Sequence[Any]], recipe: DataRecipe) -> Tokenised:
    """Turn the texts of every part into tokens; raises DataError, and ModuleNotFoundError without the library."""
    name, lines, notes = recipe.name, dict[str, list[str]](), list[str]()
    for part, values in parts.items():
        odd = next((k for k, text in enumerate(values) if not _is_text(text)), None)
        if odd is not None:
            raise DataError(
                f"Expected a text in row {odd} of the {part} part of '{name}', got {values[odd]!r}; fix it."
            )
        lines[part] = [text or "" for text in values]
        if empty := sum(not text.strip() for text in lines[part]):
            notes.append(f"{empty:,} of {len(values):,} texts of the {part} part are empty.")
    if not any(text.strip() for text in lines["train"]):
        raise DataError(f"Expected texts in the train part of '{name}', got empty ones alone; name another column.")
    content = texts.make_tokenizer(lines["train"]) if recipe.tokenizer is None else _read(recipe.tokenizer)
    try:
        tokenizer = texts.fit_tokenizer(content, lines["train"], recipe.tokens)
        numbers = {part: texts.as_tokens(each, tokenizer) for part, each in lines.items()}
    except ValueError as error:
        raise DataError(
            f"Expected a tokenizer.json of the library tokenizers as data.tokenizer, got '{recipe.tokenizer}': {error}."
        ) from None
    count, length = texts.vocabulary_size(tokenizer), numbers["train"].shape[1]
    made = "the tokenizer is made from the training texts"
    source = made if recipe.tokenizer is None else f"the tokenizer is {Path(recipe.tokenizer).name}"
    notes.insert(0, f"Texts are cut or filled up to {length} tokens, of {count:,} different ones; {source}.")
    return Tokenised(numbers, count, tokenizer, tuple(notes))


def of_texts(given: Given, recipe: DataRecipe) -> Given:
    """Return data whose samples are texts as data of tokens; raises DataError, and ModuleNotFoundError as above."""
    items = {part: Items(dataset, given.title(part), lambda text: text) for part, dataset in given.parts.items()}
    pairs = {part: [each.item(number) for number in range(len(each))] for part, each in items.items()}
    read = tokenised({part: [text for text, _ in each] for part, each in pairs.items()}, recipe)
    labels = {part: stacked([label for _, label in each], items[part].name) for part, each in pairs.items()}
    parts = {part: Pairs(x, labels[part].numpy()) for part, x in read.parts.items()}
    notes, tokens, tokenizer = given.notes + read.notes, read.tokens, read.tokenizer
    return replace(given, parts=dict(parts), tokens=tokens, notes=notes, tokenizer=tokenizer)


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and texts.is_whole(value))


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"Expected a tokenizer.json of the library tokenizers at '{path}', which cannot be read: "
            f"{getattr(error, 'strerror', None) or 'it is no text'}; name it with --set data.tokenizer=FILE."
        ) from None
