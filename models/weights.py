"""The default weights of torchvision's and timm's networks, from this machine's caches or downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.errors import ModelError
from anytime_lct.models.others import SOURCES, expect_known, published


def default_weights(name: str, input_shape: tuple[int, ...], download: bool = False) -> dict[str, Tensor]:
    """Return the default weights of `torchvision:NAME` or `timm:NAME`, with the classes they were trained on.

    Raises ModelError if the network has none, or they are not on this machine and `download` is False or fails.
    """
    source, _, network = name.partition(":")
    if source not in SOURCES:
        raise ModelError(f"The network '{name}' has no default weights; give a file: --weights FILE.")
    return (_torchvision_weights if source == "torchvision" else _timm_weights)(name, network, input_shape, download)


def input_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and deviation of each channel for the default weights, or None where none are published.

    For pixels scaled to [0, 1]; nothing is downloaded. Raises ModelError for a network unknown to torchvision or timm.

    >>> input_statistics("timm:vit_tiny_patch16_224")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    config = published(name)
    return (tuple(config.mean), tuple(config.std)) if getattr(config, "mean", None) else None


def _torchvision_weights(name: str, network: str, input_shape: tuple[int, ...], download: bool) -> dict[str, Tensor]:
    import torchvision

    expect_known("torchvision", network)
    url = torchvision.models.get_model_weights(network).DEFAULT.url  # type: ignore[attr-defined]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists() and not download:
        raise _missing(name, path, url)
    try:
        if path.exists():
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
    except Exception as error:
        raise _not_downloaded(name, url, error) from error


def _timm_weights(name: str, network: str, input_shape: tuple[int, ...], download: bool) -> dict[str, Tensor]:
    import timm

    expect_known("timm", network)
    config: Any = timm.get_pretrained_cfg(network, allow_unregistered=True)
    if config is None or not (config.hf_hub_id or config.url):
        raise ModelError(f"timm has no weights for '{network}'; give a file: --weights FILE.")
    origin = config.hf_hub_id or config.url
    path = _cache_path(config)
    if not path.exists() and not download:
        raise _missing(name, path, origin)
    try:
        return timm.create_model(network, pretrained=True, in_chans=input_shape[0]).state_dict()
    except Exception as error:
        raise _not_downloaded(name, origin, error) from error


def _cache_path(config: Any) -> Path:
    """Return where timm, or the hub that it downloads from, keeps the weights."""
    if not config.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
    from huggingface_hub import constants, try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(path, str):
            return Path(path)
    return Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}" / "model.safetensors"


def _missing(name: str, path: Path, origin: str) -> ModelError:
    return ModelError(
        f"Expected the default weights of '{name}' at '{path}', which is not there; get them from {origin}, download "
        f"them with --set data.download=true, or give a file with --weights FILE."
    )


def _not_downloaded(name: str, origin: str, error: Exception) -> ModelError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ModelError(
        f"The default weights of '{name}' could not be downloaded from {origin} ({reason}); give a file with --weights "
        f"FILE."
    )
