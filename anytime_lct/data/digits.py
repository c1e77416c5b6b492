"""The digits that scikit-learn brings: 1,797 pictures of 8x8, which need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytime_lct.data.images import ImageSet, in_memory
from anytime_lct.recipes.recipe import DataRecipe

TEST, SPLIT_SEED = 360, 0


def read(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read the digits, of which 360 are the test part, an even share of every class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    pixels = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, random_state=SPLIT_SEED, stratify=labels.numpy()
    )
    images = [in_memory(pixels[part], labels[part]) for part in (train, test)]
    return ImageSet(images[0], images[1], tuple(map(str, range(10))), augment="crop")  # a mirrored digit is none
