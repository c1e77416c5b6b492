"""Character-level text: CPython's own help texts, or any text file, as parallel streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytime_lct.data.batches import CPU, ON_DEVICE_BYTES, Batch, Share, Split
from anytime_lct.errors import DataError
from anytime_lct.recipes.fitting import batch_size
from anytime_lct.recipes.recipe import Augment, DataRecipe
from anytime_lct.task import Facts
from anytime_lct.texts import decode, encoding_of

TEST_SHARE = 0.05
REMEDY = "repair it, or train with its encoding, --set data.encoding=NAME, such as utf-16-le, cp1252 or latin-1"
PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.txt", "ptb.char.train.txt", "ptb.train.txt"),
    "validation": ("valid.txt", "validation.txt", "ptb.char.valid.txt", "ptb.valid.txt"),
    "test": ("test.txt", "ptb.char.test.txt", "ptb.test.txt"),
}


@dataclass(frozen=True)
class TextBatches:
    """A text as B parallel streams in windows of T characters; x and y int64 (B, T), y the next character.

        stream 1   | window 1 | window 2 | ..      row 1 of minibatch k+1 starts where row 1 of
        stream 2   | window 1 | window 2 | ..      minibatch k ended: hidden state can be carried

    Training drops the remainder of each stream. Evaluation divides the streams into equal windows of at most T
    instead, and has fewer streams where the text is short.
    """

    facts: Facts
    parts: dict[Split, Tensor]
    batch_size: int
    sequence_length: int
    augment: Augment = "none"
    notes: tuple[str, ...] = ()
    device: torch.device = CPU

    def to(self, device: torch.device) -> TextBatches:
        parts = self.parts
        if sum(ids.numel() * ids.element_size() for ids in parts.values()) <= ON_DEVICE_BYTES:
            parts = {split: ids.to(device) for split, ids in parts.items()}
        return replace(self, parts=parts, device=device)

    def num_samples(self, split: Split) -> int:
        streams, window, windows = self._layout(split)
        return streams * window * windows

    def num_batches(self, split: Split) -> int:
        return self._layout(split)[2]

    def num_rows(self, split: Split, number: int) -> int:
        return self._layout(split)[0]

    def batches(self, split: Split, epoch: int = 0, start: int = 0, share: Share = (0, 1)) -> Iterator[Batch]:
        streams, window, windows = self._layout(split)
        if not windows:
            return
        ids = self.parts[split]
        length = (len(ids) - 1) // streams
        x = ids[: streams * length].view(streams, length).tensor_split(share[1])[share[0]]
        y = ids[1 : streams * length + 1].view(streams, length).tensor_split(share[1])[share[0]]
        for k in range(start, windows):
            columns = slice(k * window, (k + 1) * window)
            here = [part[:, columns].to(self.device, non_blocking=True).long().contiguous() for part in (x, y)]
            yield here[0], here[1]

    def _layout(self, split: Split) -> tuple[int, int, int]:
        """Return the number of streams, the characters of a window and the number of windows."""
        characters, streams = len(self.parts[split]) - 1, self.batch_size
        if split == "train":
            return streams, self.sequence_length, max(0, characters // streams) // self.sequence_length
        streams = max(1, min(streams, characters // self.sequence_length))
        windows = -(-(characters // streams) // self.sequence_length) if characters > 0 else 0
        return streams, (characters // streams) // windows if windows else 0, windows


def load_pydoc(recipe: DataRecipe, seed: int) -> TextBatches:
    """Load the help texts of CPython, which need no download; raises DataError."""
    from pydoc_data.topics import topics

    return _as_batches(recipe, _split("\n".join(topics[key] for key in sorted(topics)), recipe.validation))


def load_file(recipe: DataRecipe, seed: int) -> TextBatches:
    """Load a text as characters; raises DataError.

    `path` is a file, whose last 5% are the test part and the `validation` share before them the validation
    part, or a folder with train.txt, valid.txt and test.txt (or the Penn Treebank's names; valid.txt is not read
    where `validation` is 0). Every file is decoded by `encoding`, or by its byte-order mark, or as UTF-8.
    """
    if recipe.path is None:
        raise DataError("The data set 'text' needs a file; name it with --set data.path=FILE.")
    path = (Path(recipe.root or "") / recipe.path).expanduser()
    if not path.is_dir():
        text, encoding = _read(path, recipe.encoding)
        return _as_batches(recipe, _split(text, recipe.validation), (encoding,))
    parts, encodings = _split("", 0.0), dict[str, None]()
    for split in PARTS:
        if recipe.validation or split != "validation":
            parts[split], encoding = _read(_part(path, split), recipe.encoding)
            encodings[encoding] = None
    return _as_batches(recipe, parts, tuple(encodings))


def _as_batches(recipe: DataRecipe, parts: dict[Split, str], encodings: tuple[str, ...] = ()) -> TextBatches:
    """Number the symbols of the whole text, sorted, so that none is unknown in the test part."""
    if recipe.changes:
        raise DataError(f"Expected data.{recipe.changes[0]} for images only, got it for a text; leave it out.")
    if recipe.mean is not None or recipe.std is not None:
        raise DataError("Expected data.mean and data.std for images only, got them for a text; leave them out.")
    codes: dict[Split, np.ndarray] = {
        split: np.frombuffer(parts[split].encode("utf-32-le"), np.uint32) for split in PARTS
    }
    present = np.zeros(0x110000, bool)
    for code in codes.values():
        present[code] = True
    symbols = tuple(map(chr, np.flatnonzero(present)))
    number = (np.cumsum(present) - 1).astype(np.int32)
    ids: dict[Split, Tensor] = {split: torch.from_numpy(number[code]) for split, code in codes.items()}
    counts = tuple(len(ids[split]) for split in PARTS)
    shape = (recipe.sequence_length,)
    facts = Facts(
        recipe.name, "language-model", shape, len(symbols), symbols, encoding=recipe.encoding, counts=counts,
        encodings=encodings,
    )  # fmt: skip
    streams = recipe.batch_size or batch_size(counts[0] // recipe.sequence_length)
    batches = TextBatches(facts, ids, streams, recipe.sequence_length)
    for split in PARTS:
        if batches.num_batches(split) < 1 and (split != "validation" or recipe.validation > 0):
            raise DataError(
                f"The text has {len(ids[split])} characters for {split}, too few for {streams} streams "
                f"of {recipe.sequence_length}; lower data.batch_size or data.sequence_length."
            )
    return batches


def _split(text: str, validation: float) -> dict[Split, str]:
    end = len(text) - round(TEST_SHARE * len(text))
    middle = max(0, end - round(validation * len(text)))
    return {"train": text[:middle], "validation": text[middle:end], "test": text[end:]}


def _read(path: Path, encoding: str | None) -> tuple[str, str]:
    """Return the text of a file, and the encoding that it was decoded by."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Expected a text in '{path.absolute()}', which cannot be read ({error.strerror}); train names it "
            f"with --set data.path=FILE, and the folder that it is in with --data-root."
        ) from None
    return decode(content, str(path), encoding, REMEDY), encoding or encoding_of(content)


def _part(folder: Path, split: Split) -> Path:
    for name in PARTS[split]:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"Expected a file {' or '.join(PARTS[split])} in '{folder.absolute()}', which has none of them; add it."
    )
