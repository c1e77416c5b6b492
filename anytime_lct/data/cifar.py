"""CIFAR-10 and CIFAR-100, in torchvision's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from anytime_lct.data.images import ImageSet, Statistics, in_memory, missing_error
from anytime_lct.data.torchvision_sets import open_set
from anytime_lct.recipes.recipe import DataRecipe

CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def read_cifar10(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read CIFAR-10."""
    return _read(datasets.CIFAR10, recipe, root, CIFAR10)


def read_cifar100(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read CIFAR-100."""
    return _read(datasets.CIFAR100, recipe, root, CIFAR100)


def _read(kind: Any, recipe: DataRecipe, root: Path, statistics: Statistics) -> ImageSet:
    if not recipe.download and not (root / kind.base_folder).is_dir():
        raise missing_error(recipe.name, root)
    train, test = (open_set(kind, recipe.name, root, train=part, download=recipe.download) for part in (True, False))
    images = [
        in_memory(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return ImageSet(images[0], images[1], tuple(train.classes), statistics)
