"""Character-level text: CPython's own help texts, or any text file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from anytime_lct.data.batches import Split, TextBatches
from anytime_lct.errors import DataError
from anytime_lct.task import Facts

TEST_SHARE = 0.05
PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.txt", "ptb.char.train.txt", "ptb.train.txt"),
    "validation": ("valid.txt", "validation.txt", "ptb.char.valid.txt", "ptb.valid.txt"),
    "test": ("test.txt", "ptb.char.test.txt", "ptb.test.txt"),
}


def load(
    name: str, path: Path | None, *, validation: float, batch_size: int, sequence_length: int
) -> TextBatches:
    """Load a text as characters; raises DataError.

    `path` is a file, whose last 5% are the test part and the `validation` share before them the validation part, or a
    folder with train.txt, valid.txt and test.txt (the Penn Treebank's names too). UTF-8, or else one character a byte.
    The symbols are those of the whole text, sorted.
    """
    if name == "pydoc":
        from pydoc_data.topics import topics

        parts = _split("\n".join(topics[key] for key in sorted(topics)), validation)
    elif path is None:
        raise DataError("The data set 'text' needs a file; name it with --set data.path=FILE.")
    elif path.is_dir():
        parts = {split: _read(_part(path, split)) for split in PARTS}
    else:
        parts = _split(_read(path), validation)
    symbols = sorted(set().union(*parts.values()))
    number = {symbol: k for k, symbol in enumerate(symbols)}
    ids: dict[Split, torch.Tensor] = {
        split: torch.from_numpy(np.fromiter((number[c] for c in text), np.int32, len(text))) for split, text in parts.items()
    }
    facts = Facts(name, "language-model", (sequence_length,), len(symbols), tuple(symbols))
    made = TextBatches(facts, ids, batch_size, sequence_length)
    for split in PARTS:
        if made.num_batches(split) < 1 and (split != "validation" or validation > 0):
            raise DataError(
                f"The text has {len(ids[split])} characters for {split}, too few for {batch_size} streams of "
                f"{sequence_length}; lower data.batch_size or data.sequence_length."
            )
    return made


def _split(text: str, validation: float) -> dict[Split, str]:
    end = len(text) - round(TEST_SHARE * len(text))
    middle = max(0, end - round(validation * len(text)))
    return {"train": text[:middle], "validation": text[middle:end], "test": text[end:]}


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The text was looked for in '{path.absolute()}', which cannot be read ({error.strerror}); name a file with "
            f"--set data.path=FILE."
        ) from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _part(folder: Path, split: Split) -> Path:
    for name in PARTS[split]:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"Expected a file {' or '.join(PARTS[split])} in '{folder.absolute()}', found none of them.")
