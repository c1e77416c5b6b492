"""The extras of an installation, and the packages that each brings."""

from __future__ import annotations

# By the names under which the packages are imported; pyproject.toml has their versions.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "torch", "torchvision", "fvcore", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy", "sklearn",
        "tensorboard", "tomli_w",
    ),
    "serve": ("starlette", "uvloop", "prometheus_client"),
    "timm": ("timm",),
    "text": ("tokenizers",),
    "datasets": ("datasets", "tokenizers"),
    "webdataset": ("webdataset",),
    "sweep": ("optuna",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
    "openvino": ("openvino",),
}  # fmt: skip
