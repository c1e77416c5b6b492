"""A network of a user's own file: a trained one with channels taken out by Torch-Pruning, to be tuned further."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_model
from anytime_lct.run_folder.checkpoint import load_tensors

STEPS, MOST = 400, 0.9  # channels go in so many steps; of every layer a tenth stays


def pruned(input_shape: tuple[int, ...], outputs: int, base: str, share: float) -> nn.Module:
    """Return the network of the run folder `base` with the channels of least norm gone, at `share` of its operations.

    Channels that a residual sum joins go together (Fang et al., CVPR 2023), and layers of the same form compete with
    each other alone (Fang et al., ECCV 2024). The same weights always lose the same channels, so that the network can
    be made again from the recipe.
    """
    import torch_pruning as tp

    recipe, facts = run_folder.read(Path(base))
    model = build_model(recipe, facts)
    model.load_state_dict(load_tensors(Path(base) / run_folder.MAIN))
    example = torch.zeros(1, *input_shape)
    pruner = tp.pruner.BasePruner(
        model.eval(),
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=MOST,
        max_pruning_ratio=MOST,
        iterative_steps=STEPS,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == outputs],
    )
    whole, _ = tp.utils.count_ops_and_params(model, example)
    for _ in range(STEPS):
        if tp.utils.count_ops_and_params(model, example)[0] <= share * whole:
            break
        pruner.step()
    return model.train()
