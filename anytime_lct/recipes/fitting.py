"""Optimizers that fit a network: what a recipe leaves open follows from the network's layers and the minibatch.

    layers of the network                       optimizer   rate, minibatches of B      weight decay  gradients
    batch norms, no attention or layer norms    SGD         0.1 x B / 128               5e-4          not clipped
    recurrent layers, no attention              AdamW       2.7e-3 x sqrt(B / 128)      0.05          clipped at 1
    any other                                   AdamW       1e-3 x sqrt(B / 128)        0.05          clipped at 1

Networks with batch norms bear the large steps of SGD and generalise best by it; attention, layer norms, recurrent
layers and networks without any norm need AdamW's steps, as in the recipes of torchvision and timm. The rate of
recurrent layers is that of the paper's LSTM (Section V-B). A network that starts from trained weights gets a tenth of
the rate; its critics, which start from nothing, the whole. The rates are measured: benchmarks/results/first_try.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from anytime_lct.recipes.recipe import OptimizerRecipe, Recipe

USUAL_ROWS = 128
SGD_RATE, SGD_DECAY = 0.1, 5e-4
ADAM_RATE, RECURRENT_RATE, ADAM_DECAY, ADAM_CLIP = 1e-3, 2.7e-3, 0.05, 1.0
FINE_TUNING = 0.1
LARGEST_BATCH, SMALLEST_BATCH, STEPS = 128, 32, 50


@dataclass(frozen=True)
class Traits:
    """What a network is made of, as far as its optimizer depends on it."""

    batch_norms: bool
    layer_norms: bool
    attention: bool
    recurrent: bool

    @property
    def optimizer(self) -> str:
        """The name of the optimizer that suits: sgd or adamw."""
        return "sgd" if self.batch_norms and not (self.layer_norms or self.attention or self.recurrent) else "adamw"

    def rate(self, optimizer: str) -> float:
        """The learning rate that suits an optimizer, sgd or another, for minibatches of 128."""
        if optimizer == "sgd":
            return SGD_RATE
        return RECURRENT_RATE if self.recurrent and not self.attention else ADAM_RATE


def batch_size(samples: int) -> int:
    """Return the samples of a minibatch: 128, or 64 or 32 where an epoch would have fewer than 50 steps.

    >>> batch_size(60_000), batch_size(4_500), batch_size(800)
    (128, 64, 32)
    """
    rows = LARGEST_BATCH
    while rows > SMALLEST_BATCH and samples < STEPS * rows:
        rows //= 2
    return rows


def is_fitted(recipe: Recipe) -> bool:
    """Return whether a recipe names everything that `fit` chooses."""
    optimizers = (recipe.groups, recipe.critics)
    return recipe.train.clip_norm is not None and all(None not in (o.name, o.lr, o.weight_decay) for o in optimizers)


def fit(recipe: Recipe, traits: Traits, rows: int) -> Recipe:
    """Return a recipe whose optimizers and clipping are named, for minibatches of `rows` samples, or several at once.

    What the recipe names stays as it is. Critics have the optimizer of the groups where theirs is left open.
    """
    rows *= recipe.train.accumulate
    start = FINE_TUNING if recipe.train.weights is not None else 1.0
    groups = _fitted(recipe.groups, traits.optimizer, traits, rows, start)
    critics = _fitted(recipe.critics, groups.name or traits.optimizer, traits, rows, 1.0)
    if recipe.critics.name is None and recipe.critics.lr is None and recipe.groups.lr is not None:
        critics = critics.model_copy(update={"lr": recipe.groups.lr})
    clip_norm = recipe.train.clip_norm
    if clip_norm is None:
        clip_norm = 0.0 if groups.name == "sgd" else ADAM_CLIP
    train = recipe.train.model_copy(update={"clip_norm": clip_norm})
    return recipe.model_copy(update={"groups": groups, "critics": critics, "train": train})


def _fitted(optimizer: OptimizerRecipe, name: str, traits: Traits, rows: int, start: float) -> OptimizerRecipe:
    name = optimizer.name or name
    rate = traits.rate(name) * (rows / USUAL_ROWS if name == "sgd" else math.sqrt(rows / USUAL_ROWS))
    decay = {"sgd": SGD_DECAY, "adamw": ADAM_DECAY}.get(name, 0.0)
    values = {"name": name, "lr": float(f"{start * rate:.3g}"), "weight_decay": decay}
    chosen = optimizer.model_dump(include=set(values), exclude_none=True)
    return optimizer.model_copy(update={**values, **chosen})
