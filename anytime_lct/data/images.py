"""Image data sets: the embedded digits, MNIST, Fashion-MNIST, CIFAR, and any folder of class folders."""

from __future__ import annotations

import gzip
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from anytime_lct.data.augment import Augment
from anytime_lct.data.batches import ImageBatches, Images, Split, decode, expect_size
from anytime_lct.errors import DataError
from anytime_lct.pixels import shorter_side
from anytime_lct.task import Facts

Found = tuple[Images, Images, tuple[str, ...]]  # training part, test part, names of the classes
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DIGITS_TEST, DIGITS_SPLIT_SEED = 360, 0
SMALL_SIDE, IN_MEMORY_BYTES = 64, 2**30
IMAGENET_SIDE = 224
LOOKED_AT = 1000  # files of a folder whose sizes are compared
STATISTICS = {  # mean and deviation of each channel; those of the other sets are computed
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load(
    name: str,
    root: Path,
    *,
    seed: int,
    validation: float,
    batch_size: int,
    augment: str,
    download: bool,
    workers: int,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ImageBatches:
    """Load an image set and hold a validation split out of its training part by seed; raises DataError."""
    if augment not in ("auto", *get_args(Augment)):
        raise DataError(f"Expected augment to be auto, {', '.join(get_args(Augment))}; got '{augment}'.")
    train, test, classes = SOURCES[name](name, root, download, image_size)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    held = round(validation * len(order))
    if held == len(order):
        raise DataError(
            f"A validation share of {validation} leaves none of {held} training images to train on; lower it."
        )
    trained = order[held:].sort().values
    parts: dict[Split, tuple[Images, Tensor]] = {
        "train": (train, trained),
        "validation": (train, order[:held].sort().values),
        "test": (test, torch.arange(len(test.labels))),
    }
    means, deviations = STATISTICS.get(name, STATISTICS["imagenet"])
    if mean is not None and std is not None:
        means, deviations = mean, std
    elif train.pixels is not None and name not in STATISTICS:
        means, deviations = _mean_and_std(train.pixels[trained])
    for what, values, above in (("mean", means, -np.inf), ("std, all above 0", deviations, 0.0)):
        if len(values) != train.shape[0] or not all(above < value < np.inf for value in values):
            raise DataError(
                f"Expected a number for each channel of '{name}', {train.shape[0]}, as data.{what}, "
                f"got {', '.join(map(str, values)) or 'none'}."
            )
    facts = Facts(name, "classification", train.shape, len(classes), classes, means, deviations, train.resize)
    chosen: Augment = _auto(name, train) if augment == "auto" else augment  # type: ignore[assignment]
    return ImageBatches(facts, chosen, parts, batch_size, seed, workers)


def _auto(name: str, images: Images) -> Augment:
    if name in ("digits", "mnist"):
        return "crop"  # a mirrored digit is none
    return "imagenet" if images.resize else "crop-flip"


def _mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel on [0, 1], exactly, from counts of the 256 levels."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * levels).sum() / counts.sum()
        deviation = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
        means.append(round(mean.item(), 6))
        deviations.append(round(max(deviation.item(), 1e-3), 6))  # a channel of one level stays finite
    return tuple(means), tuple(deviations)


def _in_memory(pixels: Tensor, labels: Tensor) -> Images:
    return Images(labels, tuple(pixels.shape[1:]), pixels)


def _digits(name: str, root: Path, download: bool, image_size: int | None) -> Found:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    pixels = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST, random_state=DIGITS_SPLIT_SEED, stratify=labels.numpy()
    )
    classes = tuple(map(str, range(10)))
    return _in_memory(pixels[train], labels[train]), _in_memory(pixels[test], labels[test]), classes


def _mnist_like(name: str, root: Path, download: bool, image_size: int | None) -> Found:
    """Read torchvision's layout, gzipped or not, or Debian's folder of Fashion-MNIST."""
    kind = datasets.FashionMNIST if name == "fashion-mnist" else datasets.MNIST
    raw = root / kind.__name__ / "raw"
    places = [raw, DEBIAN_FASHION_MNIST] if name == "fashion-mnist" else [raw]
    files = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    complete = [found for place in places if (found := _files(place, files))]
    if not complete:
        if download:
            _torchvision(kind, name, root, download=True)
        elif raw.is_dir():
            raise _damaged(name, raw, "a file is missing")
        else:
            raise _missing(name, root)
        complete = [[raw / file for file in files]]
    parts = []
    for paths in (complete[0][:2], complete[0][2:]):
        pixels, labels = (_idx(name, path) for path in paths)
        if pixels.dim() != 3 or labels.shape != pixels.shape[:1] or not len(labels):
            raise _damaged(name, paths[1], f"labels {tuple(labels.shape)} for images {tuple(pixels.shape)}")
        if labels.max() > 9:
            raise _damaged(name, paths[1], f"a label {labels.max()} where 0 to 9 are expected")
        parts.append(_in_memory(pixels.unsqueeze(1), labels.long()))
    return parts[0], parts[1], tuple(entry.split(" - ")[0] for entry in kind.classes)


def _files(folder: Path, names: list[str]) -> list[Path]:
    """Return the paths of all these files in a folder, gzipped or not, or nothing where one is missing."""
    paths = [path for name in names for path in (folder / name, folder / f"{name}.gz")]
    found = {path.name.removesuffix(".gz"): path for path in reversed(paths) if path.is_file()}
    return [found[name] for name in names] if len(found) == len(names) else []


def _idx(name: str, path: Path) -> Tensor:
    """Read an IDX file: 0, 0, 8 (for uint8), the number of axes, their big-endian sizes, and the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        if (zero, kind) != (0, 8):
            raise ValueError("it is no IDX file of bytes")
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise _damaged(name, path, str(error)) from None


def _cifar(name: str, root: Path, download: bool, image_size: int | None) -> Found:
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    if not download and not (root / kind.base_folder).is_dir():
        raise _missing(name, root)
    train, test = (_torchvision(kind, name, root, train=train, download=download) for train in (True, False))
    train_images, test_images = (
        _in_memory(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return train_images, test_images, tuple(train.classes)


def _torchvision(kind: Any, name: str, root: Path, *, train: bool = True, download: bool = False) -> Any:
    """Let torchvision check, and fetch where asked, the files of a data set."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(str(root), train=train, download=download)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if download:
            raise DataError(
                f"The data set '{name}' could not be downloaded to '{root.absolute()}' ({reason}); "
                f"put torchvision's files there, or name a folder that has them with --data-root."
            ) from None
        raise _damaged(name, root, reason) from None


def _missing(name: str, root: Path) -> DataError:
    debian, hint = "", ""
    if name == "fashion-mnist":
        debian, hint = f" and in {DEBIAN_FASHION_MNIST}", ", or install Debian's dataset-fashion-mnist"
    return DataError(
        f"The data set '{name}' was looked for in '{root.absolute()}'{debian} and is not there; name its "
        f"folder with --data-root, or let it be fetched with --download{hint}."
    )


def _damaged(name: str, place: Path, reason: str) -> DataError:
    return DataError(
        f"The data set '{name}' in '{place.absolute()}' is damaged or incomplete ({reason}); remove it "
        f"there and get it anew, for instance with --download."
    )


def _imagefolder(name: str, root: Path, download: bool, image_size: int | None) -> Found:
    evaluated = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or evaluated is None:
        raise DataError(
            f"An image folder was looked for in '{root.absolute()}', which needs the folders train/ and "
            f"test/ (or val/), each with one folder a class; name another with --data-root."
        )
    try:
        train, test = datasets.ImageFolder(str(root / "train")), datasets.ImageFolder(str(evaluated))
    except OSError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {reason}.") from None
    if train.classes != test.classes:
        odd = min(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"Expected the same classes in '{root}/train' and '{evaluated}', but '{odd}' is in one of them "
            f"only; add or remove its folder."
        )
    first = decode(train.samples[0][0])
    height, width = first.shape[1:]
    small = height == width == image_size if image_size else max(height, width) < SMALL_SIDE
    if small and image_size:  # and are all others?
        paths = [path for path, _ in (*train.samples, *test.samples)]
        small = all(_size(path) == (width, height) for path in paths[:: -(-len(paths) // LOOKED_AT)])
    in_memory = small and (len(train.samples) + len(test.samples)) * first.numel() <= IN_MEMORY_BYTES
    side = image_size or IMAGENET_SIDE
    shape, resize = (tuple(first.shape), None) if small else ((3, side, side), shorter_side(side, side))
    parts = []
    for folder in (train, test):
        files = [path for path, _ in folder.samples]
        pixels = _decoded(files, shape) if in_memory else None
        parts.append(Images(torch.tensor(folder.targets), shape, pixels, files, resize))
    return parts[0], parts[1], tuple(train.classes)


def _size(path: str) -> tuple[int, int]:
    """Read an image file's width and height, and no more of it; (0, 0) where it is damaged, which its reader tells."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _decoded(files: list[str], shape: tuple[int, ...]) -> Tensor:
    images = torch.empty(len(files), *shape, dtype=torch.uint8)
    for number, path in enumerate(files):
        image = decode(path)
        expect_size(path, image, (shape[1], shape[2]))
        images[number] = image
    return images


SOURCES: dict[str, Callable[[str, Path, bool, int | None], Found]] = {
    "digits": _digits,
    "mnist": _mnist_like,
    "fashion-mnist": _mnist_like,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagefolder": _imagefolder,
}
