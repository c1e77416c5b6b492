"""Inputs by name, as people give them: files, folders, patterns and standard input, read in bounded portions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import InputError
from anytime_lct.exits.bundle import Manifest
from anytime_lct.pixels import EXTENSIONS
from anytime_lct.runtime import preprocess

STANDARD_INPUT = "-"
LARGEST = 16  # samples of a portion: more are hardly faster, and take more memory
SUFFIXES = {"image": (*EXTENSIONS, preprocess.ARRAY), "text": (".txt",), "array": (preprocess.ARRAY,)}


@dataclass(frozen=True)
class Portion:
    """Samples `first`, `first` + 1, .. of an input that has `count`, as the network takes them; `x` is the batch."""

    x: NDArray[Any]
    first: int
    count: int


def files_of(name: str, manifest: Manifest) -> list[str]:
    """Return the files that a name stands for: a file, a folder's files, those that match a pattern, or "-" itself.

    Of a folder, and of those in it, all image files and .npy arrays count, for a network on arrays the latter, for text
    and texts the .txt files, sorted, hidden ones left out. `**` in a pattern stands for any folders. A file that is
    missing is returned too. Raises InputError for a folder or a pattern without files.

    >>> files_of("photos/*.jpg", session.manifest)                                     # doctest: +SKIP
    ['photos/a.jpg', 'photos/b.jpg']
    """
    rules = manifest.preprocessing
    suffixes = (*SUFFIXES[rules.kind], *(SUFFIXES["text"] if rules.tokenizer is not None else ()))
    if Path(name).is_dir():
        if files := _files_in(name, suffixes):
            return files
        raise InputError(
            f"Expected a folder with input files, got '{name}' without a file {', '.join(suffixes)}; name its files."
        )
    if name == STANDARD_INPUT or os.path.lexists(name) or not any(sign in name for sign in "*?["):
        return [name]
    matches: set[str] = set()
    for match in glob(name, recursive=True):  # noqa: PTH207  (a Path has no pattern that begins with /)
        matches.update(_files_in(match, suffixes) if Path(match).is_dir() else [match])
    if matches:
        return sorted(matches)
    raise InputError(f"Expected input files, got the pattern '{name}', which matches none; check its folder.")


def read(name: str, manifest: Manifest) -> Iterator[Portion]:
    """Yield the samples of a file, or of standard input for "-", in portions of up to `LARGEST`; raises InputError.

    A .npy file may be larger than memory.

    >>> next(read("digit.png", session.manifest)).x.shape                              # doctest: +SKIP
    (1, 1, 28, 28)
    """
    path, rules = Path(name), manifest.preprocessing
    if name == STANDARD_INPUT:
        x = preprocess.from_bytes(sys.stdin.buffer.read(), "standard input", manifest)
    elif rules.kind != "text" and path.suffix.lower() == preprocess.ARRAY and path.is_file() and path.stat().st_size:
        with preprocess.naming(name):
            array = preprocess.samples(preprocess.load_array(path, name, mapped=True), rules)
            with path.open("rb") as file:
                for k in range(0, len(array), LARGEST):
                    yield Portion(preprocess.from_samples(_read_samples(file, array, k), rules), k, len(array))
        return
    else:
        x = preprocess.read_input(path, manifest)
    for k in range(0, len(x), LARGEST):
        yield Portion(x[k : k + LARGEST], k, len(x))


def _read_samples(file: BinaryIO, array: NDArray[Any], first: int) -> NDArray[Any]:
    """Return the samples of a portion, read from the file where it is mapped; raises InputError.

    What is mapped stays untouched: that would end the process where the file has got shorter meanwhile.
    """
    samples = array[first : first + LARGEST]
    if not isinstance(array, np.memmap):
        return samples
    file.seek(array.offset + first * (array.nbytes // len(array)))
    numbers = np.fromfile(file, array.dtype, samples.size)
    if len(numbers) < samples.size:
        raise InputError("Expected the array to stay whole while it is read, got a shorter file; try again.")
    return numbers.reshape(samples.shape)


def _files_in(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files in a folder and in those below it, each folder once, sorted; with folders that are locked."""
    files: list[str] = []
    visited: set[str] = set()  # a link may lead back to a folder above
    for path, folders, names in os.walk(folder, onerror=lambda error: files.append(error.filename), followlinks=True):
        if (real := os.path.realpath(path)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        chosen = (name for name in names if not name.startswith(".") and name.lower().endswith(suffixes))
        files.extend(str(Path(path) / name) for name in chosen)
    return sorted(files)
