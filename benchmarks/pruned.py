"""A network from a user's own file: a trained network with channels removed by Torch-Pruning, for fine-tuning."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_model
from anytime_lct.run_folder.checkpoint import load_tensors

STEPS, MAX_RATIO = 400, 0.9  # number of pruning steps; every layer keeps at least a tenth of its channels


def pruned(input_shape: tuple[int, ...], outputs: int, base: str, share: float) -> nn.Module:
    """Return the network of the run folder `base` without its channels of least norm, at `share` of its operations.

    Channels that a residual sum joins are removed together (Fang et al., CVPR 2023), and only layers of the same form
    are ranked against each other (Fang et al., ECCV 2024). The same weights always lose the same channels, so the
    recipe alone rebuilds the network.
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
        pruning_ratio=MAX_RATIO,
        max_pruning_ratio=MAX_RATIO,
        iterative_steps=STEPS,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == outputs],
    )
    full_operations, _ = tp.utils.count_ops_and_params(model, example)
    for _ in range(STEPS):
        if tp.utils.count_ops_and_params(model, example)[0] <= share * full_operations:
            break
        pruner.step()
    return model.train()
