"""Parts that a data set does not have are held out of its training part by the seed; targets get a unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import DataRecipe


@dataclass(frozen=True)
class HeldOut:
    """The numbers of the training part's samples that stay for training, and those held out, () to 0 of them."""

    train: Tensor
    validation: Tensor
    test: Tensor


def hold_out(
    recipe: DataRecipe, count: int, seed: int, *, validation: bool, test: bool, samples: str = "images"
) -> HeldOut:
    """Divide `count` training samples by the recipe's shares; `validation` and `test` say which parts are missing.

    Raises DataError where none is left.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    num_validation = round(recipe.validation * count) if validation else 0
    num_test = max(1, round(recipe.test * count)) if test else 0
    if num_validation + num_test >= count:
        shares = f"A validation share of {recipe.validation}" + f" and a test share of {recipe.test}" * (num_test > 0)
        raise DataError(
            f"{shares} {'leave' if num_test else 'leaves'} none of {count} training {samples} to train on; lower "
            f"{'them' if num_test else 'it'}."
        )
    ends = (num_validation, num_validation + num_test)
    held_out, tested, rest = (part.sort().values for part in order.tensor_split(ends))
    return HeldOut(rest, held_out, tested)


def drawn_note(number: int, count: int, samples: str = "images") -> str:
    """Return the sentence that a test part was drawn from the training part."""
    return f"The data has no test part: {number:,} of its {count:,} {samples}, drawn by the seed, are it."


def unit_of(targets: Tensor, name: str) -> tuple[tuple[float, ...], float]:
    """Return the mean of each target (N, K), and the root of their mean variance; raises DataError where that is 0."""
    scale = targets.var(dim=0, correction=0).mean().sqrt().item()
    if not scale > 0:
        raise DataError(f"Expected targets that differ in '{name}', got the same for all of training; correct them.")
    return tuple(targets.mean(dim=0).tolist()), scale


def in_unit(targets: Tensor, centers: tuple[float, ...], scale: float) -> Tensor:
    """Return targets as the network answers them, float32 (N, K) (`Facts`)."""
    return ((targets - targets.new_tensor(centers)) / scale).float()
