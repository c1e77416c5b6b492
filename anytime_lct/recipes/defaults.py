"""The defaults of a recipe, by task and data set; optimizers follow from the network (`fitting`)."""

from __future__ import annotations

from typing import Any

# Critics learn by their own cross-entropy, which measured best (benchmarks/results/critics_small.md, table5_small.md),
# and rates follow one cycle, which suits short runs and long ones.
IMAGES: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "train": {"epochs": 30},
    "rule": {"critic_loss": "cross-entropy"},
    "groups_schedule": {"name": "one-cycle"},
}
TEXTS: dict[str, Any] = {
    "data": {"validation": 0.05},
    "cut": {"by": "layers"},
    "model": {"name": "lstm", "layers": 2, "units": 256, "embedding": 64},
    "train": {"epochs": 10},
    "rule": {"critic_loss": "cross-entropy"},
    "groups_schedule": {"name": "one-cycle"},
}
# Of the default network on text: its rate is that of Section V-B of the paper, and its embedding is one step of a cut.
LSTM: dict[str, Any] = {"cut": {"groups": 2}, "groups": {"name": "adam", "lr": 2.7e-3}, "train": {"clip_norm": 1.0}}
# Data of any kind: the network follows from the samples.
ANY: dict[str, Any] = {"model": {"name": "auto"}}
BUILT_IN: dict[str, dict[str, Any]] = {
    "digits": {"model": {"name": "resnet", "depth": 14, "width": 16}, "train": {"epochs": 15}},
    "pydoc": {
        "data": {"batch_size": 32, "sequence_length": 100},
        "model": {"layers": 2, "units": 128, "embedding": 64},
        "train": {"epochs": 3},
    },
}
# torchvision trained the weights of these networks on inputs of another scale; `transform_input` converts to it.
SCALED_INPUTS = ("torchvision:googlenet", "torchvision:inception_v3")
