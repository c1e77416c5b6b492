"""The defaults of a recipe: the paper's values for its task, or those of the built-in data sets."""

from __future__ import annotations

from typing import Any

# Section V-B of the paper: ResNets on CIFAR (80,000 minibatches of 128 are about 205 epochs) and LSTMs on the Penn
# Treebank. Only critics differ, because their own cross-entropy measured best: those of images are residual and trained
# like the groups, those of text have three layers (benchmarks/results/critics_small.md, table5_small.md). The built-in
# data sets are small and get short runs.
PAPER_IMAGES: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "train": {"epochs": 205},
    "groups": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "groups_schedule": {"name": "step", "milestones": [0.5, 0.75], "gamma": 0.1},
    "critic": {"kind": "residual"},
    "rule": {"critic_loss": "cross-entropy"},
    "critics": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "critics_schedule": {"name": "step", "milestones": [0.5, 0.75], "gamma": 0.1},
}
PAPER_TEXT: dict[str, Any] = {
    "data": {"validation": 0.05},
    "model": {"name": "lstm", "layers": 4, "units": 600, "embedding": 128},
    "train": {"epochs": 100},
    "groups": {"name": "adam", "lr": 2.7e-3, "weight_decay": 1.2e-5},
    "groups_schedule": {"name": "step", "milestones": [0.2, 0.4, 0.6, 0.8], "gamma": 0.33},
    "critic": {"kind": "slim", "depth": 3},
    "rule": {"critic_loss": "cross-entropy"},
    "critics": {"name": "adam", "lr": 2.7e-3},
    "critics_schedule": {"name": "step", "milestones": [0.2, 0.4, 0.6, 0.8], "gamma": 0.33},
}
BUILT_IN: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"batch_size": 64},
        "model": {"name": "resnet", "depth": 14, "width": 16},
        "train": {"epochs": 15},
        "groups_schedule": {"name": "one-cycle"},
        "critic": {"kind": "slim"},
        "critics": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
        "critics_schedule": {"name": "constant"},
        "rule": {"critic_loss": "mixed", "cross_entropy": 0.5},
    },
    "pydoc": {
        "data": {"batch_size": 32, "sequence_length": 100},
        "model": {"layers": 2, "units": 128, "embedding": 64},
        "cut": {"groups": 2},
        "train": {"epochs": 3, "clip_norm": 1.0},
    },
}
# torchvision trained the weights of these networks on inputs of another scale; `transform_input` converts to it.
SCALED_INPUTS = ("torchvision:googlenet", "torchvision:inception_v3")
