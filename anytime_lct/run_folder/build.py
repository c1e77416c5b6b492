"""The network of a recipe: built, cut and initialised from the seed alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from anytime_lct.cutting.snapshot import seeded
from anytime_lct.models import networks
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.fitting import Traits
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe, Recipe
from anytime_lct.task import Facts

WHOLE = CutRecipe(groups=1)


def build_network(recipe: Recipe, facts: Facts, *, whole: bool = False, compare: bool = True) -> LCTNetwork:
    """Build, cut and initialise the network of a recipe; the weights depend on the seed alone.

    With `whole` it stays uncut, a network of one group. With `train.exit` it is the sub-network of that exit alone.
    With `compare`, groups are compared with the network over a training step; a trained run was compared before.
    """
    with seeded(recipe.train.seed):
        network = LCTNetwork.cut(
            build_model(recipe, facts),
            example_input(facts),
            WHOLE if whole else recipe.cut,
            CriticRecipe(kind=recipe.critic.kind) if whole else recipe.critic,
            facts.task,
            compare=compare,
        )
    return network if recipe.train.exit is None else LCTNetwork([network.sub_model(recipe.train.exit)], [])


def build_model(recipe: Recipe, facts: Facts) -> nn.Module:
    """Build the uncut network of a recipe; draws its weights from the random states."""
    tokens = facts.tokens if facts.inputs == "array" else None
    return networks.build(recipe.model.name, facts.input_shape, facts.outputs, tokens, **recipe.model.options)


def traits(model: nn.Module) -> Traits:
    """Return what a network is made of; timm's and torchvision's attention is known by the names of its classes."""
    parts = list(model.modules())
    return Traits(
        batch_norms=any(isinstance(part, _BatchNorm | nn.GroupNorm | _InstanceNorm) for part in parts),
        layer_norms=any(isinstance(part, nn.LayerNorm) for part in parts),
        attention=any("Attention" in type(part).__name__ for part in parts),
        recurrent=any(isinstance(part, nn.RNNBase) for part in parts),
    )


def example_input(facts: Facts, batch: int = 2) -> Tensor:
    """Return a batch of zeros of the network's input: float32, or int64 (B, T) for text and tokens."""
    return torch.zeros(batch, *facts.input_shape, dtype=torch.int64 if facts.tokens else torch.float32)
