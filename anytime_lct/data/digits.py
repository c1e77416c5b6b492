"""The digits that scikit-learn ships: 1,797 images of 8x8 pixels, which need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytime_lct.data.images import ImageSet, in_memory
from anytime_lct.recipes.recipe import DataRecipe

TEST, SPLIT_SEED = 360, 0


def read(recipe: DataRecipe, root: Path) -> ImageSet:
    """Read the digits; 360 of them are the test part, with every class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, random_state=SPLIT_SEED, stratify=labels.numpy()
    )
    images = [in_memory(pixels[part], labels[part]) for part in (train, test)]
    return ImageSet(images[0], images[1], tuple(map(str, range(10))), augment="crop")  # mirrored digits are no digits
