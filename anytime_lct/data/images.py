"""Image data sets: the embedded digits, MNIST, Fashion-MNIST, CIFAR, and any folder of class folders."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from anytime_lct.data.batches import ImageBatches, Samples, Split
from anytime_lct.errors import DataError
from anytime_lct.task import Facts

AUGMENT = {"digits": "crop", "mnist": "crop"}  # what "auto" means; crop-flip for the other small images
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DIGITS_TEST, DIGITS_SPLIT_SEED = 360, 0
SMALL_SIDE, IN_MEMORY_BYTES = 64, 2**30
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_SIDE, IMAGENET_RESIZE = 224, 256


@dataclass(frozen=True)
class Part:
    """Training or test part: uint8 images (N, C, H, W) in memory, or None with a folder to read them from."""

    labels: Tensor
    images: Tensor | None
    folder: datasets.ImageFolder | None = None

    def samples(self) -> Samples:
        if self.images is not None:
            return Samples(self.images.__getitem__, self.labels)
        assert self.folder is not None
        folder = self.folder
        return Samples(lambda i: _open(Path(folder.samples[i][0])), self.labels)


def load(
    name: str, root: Path, *, seed: int, validation: float, batch_size: int, augment: str, download: bool, workers: int
) -> ImageBatches:
    """Load an image data set and hold a validation split out of its training part by seed; raises DataError."""
    train, test, classes = SOURCES[name](name, root, download)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    held = round(validation * len(order))
    indices: dict[Split, Tensor] = {"validation": order[:held].sort().values, "train": order[held:].sort().values}
    parts: dict[Split, tuple[Samples, Tensor]] = {
        "train": (train.samples(), indices["train"]),
        "validation": (train.samples(), indices["validation"]),
        "test": (test.samples(), torch.arange(len(test.labels))),
    }
    if train.images is None:
        shape, mean, std = (3, IMAGENET_SIDE, IMAGENET_SIDE), IMAGENET_MEAN, IMAGENET_STD
    else:
        shape = tuple(train.images.shape[1:])
        mean, std = _mean_and_std(train.images[indices["train"]])
    facts = Facts(name, "classification", shape, len(classes), classes, mean, std)
    chosen = AUGMENT.get(name, "crop-flip" if train.images is not None else "imagenet") if augment == "auto" else augment
    return ImageBatches(
        facts, parts, _training_transform(chosen, shape), _evaluation_transform(train.images is None), batch_size, seed, workers
    )


def _training_transform(augment: str, shape: tuple[int, ...]) -> Callable[[Any], Tensor]:
    height, width = shape[1:]
    padding = [max(1, width // 8), max(1, height // 8)]
    steps: dict[str, list[Any]] = {
        "none": [],
        "crop": [v2.RandomCrop((height, width), padding=padding)],
        "flip": [v2.RandomHorizontalFlip()],
        "crop-flip": [v2.RandomCrop((height, width), padding=padding), v2.RandomHorizontalFlip()],
        "imagenet": [v2.RandomResizedCrop((height, width)), v2.RandomHorizontalFlip()],
    }
    return v2.Compose([v2.ToImage(), *steps[augment], v2.ToPureTensor()]) if steps[augment] else _as_is


def _evaluation_transform(large: bool) -> Callable[[Any], Tensor]:
    if not large:
        return _as_is
    return v2.Compose([v2.ToImage(), v2.Resize(IMAGENET_RESIZE), v2.CenterCrop(IMAGENET_SIDE), v2.ToPureTensor()])


def _as_is(image: Any) -> Tensor:
    return image


def _mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel on [0, 1], exactly, from counts of the 256 levels."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts * levels).sum() / counts.sum()
        deviation = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
        means.append(round(mean.item(), 6))
        deviations.append(round(max(deviation.item(), 1e-3), 6))
    return tuple(means), tuple(deviations)


def _digits(name: str, root: Path, download: bool) -> tuple[Part, Part, tuple[str, ...]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST, random_state=DIGITS_SPLIT_SEED, stratify=labels.numpy()
    )
    return Part(labels[train], images[train]), Part(labels[test], images[test]), tuple(map(str, range(10)))


def _mnist_like(name: str, root: Path, download: bool) -> tuple[Part, Part, tuple[str, ...]]:
    kind = datasets.FashionMNIST if name == "fashion-mnist" else datasets.MNIST
    classes = tuple(entry.split(" - ")[0] for entry in kind.classes)
    if name == "fashion-mnist" and not (root / "FashionMNIST").exists() and DEBIAN_FASHION_MNIST.is_dir():
        return _idx("train"), _idx("t10k"), classes
    train, test = (_torchvision(kind, name, root, download, train=train) for train in (True, False))
    return Part(train.targets, train.data.unsqueeze(1)), Part(test.targets, test.data.unsqueeze(1)), classes


def _idx(prefix: str) -> Part:
    """Read Debian's gzipped IDX files: a header of 16 (images) or 8 (labels) bytes, then the bytes themselves."""
    raw = {}
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = DEBIAN_FASHION_MNIST / f"{prefix}-{kind}-ubyte.gz"
        try:
            raw[kind] = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy()
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"The file '{path}' is missing or damaged ({error}); install dataset-fashion-mnist again.") from None
    return Part(torch.from_numpy(raw["labels-idx1"]).long(), torch.from_numpy(raw["images-idx3"].reshape(-1, 1, 28, 28)))


def _cifar(name: str, root: Path, download: bool) -> tuple[Part, Part, tuple[str, ...]]:
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    parts, classes = [], ()
    for train in (True, False):
        found = _torchvision(kind, name, root, download, train=train)
        classes = tuple(found.classes)
        parts.append(Part(torch.tensor(found.targets), torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()))
    return parts[0], parts[1], classes


def _torchvision(kind: Any, name: str, root: Path, download: bool, *, train: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(str(root), train=train, download=download)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        hint = ", or install Debian's dataset-fashion-mnist" if name == "fashion-mnist" else ""
        raise DataError(
            f"The data set '{name}' was looked for in '{root.absolute()}' in torchvision's layout and could not be read "
            f"({str(error).strip().splitlines()[0]}); name its folder with --data-root, or let it be fetched with --download{hint}."
        ) from None


def _imagefolder(name: str, root: Path, download: bool) -> tuple[Part, Part, tuple[str, ...]]:
    evaluated = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or evaluated is None:
        raise DataError(
            f"An image folder was looked for in '{root.absolute()}', which needs the folders train/ and test/ (or val/), "
            f"each with one folder a class; name another with --data-root."
        )
    try:
        train, test = datasets.ImageFolder(str(root / "train")), datasets.ImageFolder(str(evaluated))
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"The image folder '{root.absolute()}' cannot be read: {error}.") from None
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise DataError(f"Expected the same classes in '{root}/train' and '{evaluated}', but '{odd}' is in one of them only.")
    width, height = _open(Path(train.samples[0][0])).size
    fits = (len(train.samples) + len(test.samples)) * 3 * width * height <= IN_MEMORY_BYTES
    parts = []
    for folder in (train, test):
        labels = torch.tensor(folder.targets)
        small = max(width, height) < SMALL_SIDE and fits
        parts.append(Part(labels, _decode(folder, width, height)) if small else Part(labels, None, folder))
    return parts[0], parts[1], tuple(train.classes)


def _decode(folder: datasets.ImageFolder, width: int, height: int) -> Tensor:
    images = torch.empty(len(folder.samples), 3, height, width, dtype=torch.uint8)
    for number, (path, _) in enumerate(folder.samples):
        image = _open(Path(path))
        if image.size != (width, height):
            raise DataError(f"Expected images of {width}x{height} like the first, but '{path}' is {image.width}x{image.height}.")
        images[number] = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    return images


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"The image '{path}' cannot be read: {error}; repair or remove it.") from None


SOURCES: dict[str, Callable[[str, Path, bool], tuple[Part, Part, tuple[str, ...]]]] = {
    "digits": _digits,
    "mnist": _mnist_like,
    "fashion-mnist": _mnist_like,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagefolder": _imagefolder,
}
