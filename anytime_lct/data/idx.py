"""MNIST and Fashion-MNIST, in IDX files: torchvision's layout, gzipped or not, or Debian's folder of Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from anytime_lct.data.images import ImageSet, Statistics, damage_error, in_memory, missing_error
from anytime_lct.data.torchvision_sets import open_set
from anytime_lct.recipes.recipe import Augment, DataRecipe

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MNIST: Statistics = ((0.1307,), (0.3081,))
FASHION_MNIST: Statistics = ((0.2860,), (0.3530,))


def read_mnist(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read MNIST."""
    return _read(datasets.MNIST, recipe, root, [], MNIST, "crop")  # mirrored digits are no digits


def read_fashion_mnist(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read Fashion-MNIST."""
    return _read(datasets.FashionMNIST, recipe, root, [DEBIAN_FASHION_MNIST], FASHION_MNIST, "crop-flip")


def _read(
    kind: Any, recipe: DataRecipe, root: Path, other_folders: list[Path], statistics: Statistics, augment: Augment
) -> ImageSet:
    name, raw = recipe.name, root / kind.__name__ / "raw"
    files = [f"{part}-{values}-ubyte" for part in ("train", "t10k") for values in ("images-idx3", "labels-idx1")]
    complete = [paths for folder in (raw, *other_folders) if (paths := _files(folder, files))]
    if not complete:
        if recipe.download:
            open_set(kind, name, root, download=True)
        elif raw.is_dir():
            raise damage_error(name, raw, "a file is missing")
        elif other_folders:
            raise missing_error(name, root, f" or {other_folders[0]}", ", or install Debian's dataset-fashion-mnist")
        else:
            raise missing_error(name, root)
        complete = [[raw / file for file in files]]
    parts = []
    for paths in (complete[0][:2], complete[0][2:]):
        pixels, labels = (_read_idx(name, path) for path in paths)
        if pixels.dim() != 3 or labels.shape != pixels.shape[:1] or not len(labels):
            raise damage_error(name, paths[1], f"labels {tuple(labels.shape)} for images {tuple(pixels.shape)}")
        if labels.max() > 9:
            raise damage_error(name, paths[1], f"a label {labels.max()} where 0 to 9 are expected")
        parts.append(in_memory(pixels.unsqueeze(1), labels.long()))
    classes = tuple(entry.split(" - ")[0] for entry in kind.classes)
    return ImageSet(parts[0], parts[1], classes, statistics, augment)


def _files(folder: Path, names: list[str]) -> list[Path]:
    """Return the paths of all these files in a folder, gzipped or not, or none where one is missing."""
    paths = [path for name in names for path in (folder / name, folder / f"{name}.gz")]
    by_name = {path.name.removesuffix(".gz"): path for path in reversed(paths) if path.is_file()}
    return [by_name[name] for name in names] if len(by_name) == len(names) else []


def _read_idx(name: str, path: Path) -> Tensor:
    """Read an IDX file: 0, 0, 8 (for uint8), the number of axes, their big-endian sizes, and the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        if (zero, kind) != (0, 8):
            raise ValueError("it is not an IDX file of bytes")
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise damage_error(name, path, str(error)) from None
