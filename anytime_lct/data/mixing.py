"""mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019): pairs of images, and of their labels.

    minibatch   a b c d e  ->  a|b b|a c|d d|c e      neighbours, whose order is random already; the last of an odd
    labels      (B,)       ->  (B, K)                 number stays as it is

Neighbours stay together where a minibatch is split between replicas: a share takes the partners of its ends too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import DataRecipe
from anytime_lct.task import Facts


@dataclass(frozen=True)
class Mixing:
    """How training images are mixed: the parameters of both Beta distributions, 0 for never.

    With both, each minibatch is mixed by one of them, half of the minibatches by each.
    """

    mixup: float
    cutmix: float
    classes: int

    @staticmethod
    def of(recipe: DataRecipe, facts: Facts) -> Mixing | None:
        """Return the mixing of a recipe, None where images stay alone; raises DataError for labels without classes."""
        if not recipe.mixup and not recipe.cutmix:
            return None
        if facts.row.is_numbers:
            key = "mixup" if recipe.mixup else "cutmix"
            raise DataError(f"Expected classes with data.{key}, which mixes them, got targets; leave it out.")
        return Mixing(recipe.mixup, recipe.cutmix, facts.outputs)

    def mixed(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix a minibatch x (B, C, H, W), y (B,), by numbers that follow from `seed`; labels are float32 (B, K).

        A share lambda of an image and of its label stays, 1 - lambda is that of its partner. mixup blends pixels;
        CutMix takes a box of as large a part of the image from the partner.
        """
        draws = np.random.default_rng(seed)
        cut = draws.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        alpha = self.cutmix if cut else self.mixup
        share = float(draws.beta(alpha, alpha))
        partners = torch.arange(len(x), device=x.device).bitwise_xor(1).clamp(max=len(x) - 1)
        if cut:
            top, bottom, left, right = _box(x.shape[2], x.shape[3], share, draws.random(2))
            share = 1 - (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
            box = (..., slice(top, bottom), slice(left, right))
            images = x.clone()
            images[box] = x[partners][box]
        else:
            images = torch.lerp(x[partners], x, share)
        labels = F.one_hot(y, self.classes).float()
        return images, torch.lerp(labels[partners], labels, share)


def share_of(minibatch: Tensor, share: tuple[int, int], *, partners: bool) -> tuple[Tensor, slice]:
    """Return the rows that share k of n of a minibatch (B,) needs, with their partners, and where its own rows are.

    >>> share_of(torch.arange(10), (1, 3), partners=True)     # rows 4, 5 and 6, and the partner of 6
    (tensor([4, 5, 6, 7]), slice(0, 3, None))
    """
    if not partners:
        return minibatch.tensor_split(share[1])[share[0]], slice(None)
    rows = torch.arange(len(minibatch)).tensor_split(share[1])[share[0]].tolist()
    first, end = (rows[0], rows[-1] + 1) if rows else (0, 0)
    start = first - first % 2
    return minibatch[start : end + end % 2], slice(first - start, end - start)


def _box(height: int, width: int, share: float, center: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a box of 1 - `share` of an image, cut to it, at a center from [0, 1)."""
    edges: list[int] = []
    for side, position in ((height, center[0]), (width, center[1])):
        half, middle = 0.5 * math.sqrt(1 - share) * side, int(position * side)
        edges += [max(0, int(middle - half)), min(side, int(middle + half))]
    return edges[0], edges[1], edges[2], edges[3]
