"""The weights that torchvision and timm ship for their networks, where they are on this machine or may be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime_lct.errors import ModelError
from anytime_lct.models.others import SOURCES, expect_known


def default_weights(name: str, input_shape: tuple[int, ...], download: bool = False) -> dict[str, Tensor]:
    """Return the default weights of `torchvision:NAME` or `timm:NAME`, of the classes they were trained for.

    Raises ModelError where the network has none, or they are not on this machine and `download` is False or fails.
    """
    source, _, rest = name.partition(":")
    if source not in SOURCES:
        raise ModelError(f"The network '{name}' has no default weights; give a file: --weights FILE.")
    return (_of_torchvision if source == "torchvision" else _of_timm)(name, rest, input_shape, download)


def input_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation of each channel that the default weights were trained on, or None where none are told.

    On pixels scaled to [0, 1]; nothing is fetched. Raises ModelError for a network that torchvision or timm lacks.

    >>> input_statistics("timm:vit_tiny_patch16_224")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    source, _, rest = name.partition(":")
    if source not in SOURCES:
        return None
    expect_known(source, rest)
    told: Any = None
    if source == "timm":
        import timm

        told = timm.get_pretrained_cfg(rest, allow_unregistered=True)
    else:
        import torchvision

        told = torchvision.models.get_model_weights(rest).DEFAULT.transforms()  # type: ignore[attr-defined]
    return (tuple(told.mean), tuple(told.std)) if getattr(told, "mean", None) else None


def _of_torchvision(name: str, rest: str, input_shape: tuple[int, ...], download: bool) -> dict[str, Tensor]:
    import torchvision

    expect_known("torchvision", rest)
    url = torchvision.models.get_model_weights(rest).DEFAULT.url  # type: ignore[attr-defined]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists() and not download:
        raise _missing(name, path, url)
    try:
        if path.exists():
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
    except Exception as error:
        raise _not_fetched(name, url, error) from error


def _of_timm(name: str, rest: str, input_shape: tuple[int, ...], download: bool) -> dict[str, Tensor]:
    import timm

    expect_known("timm", rest)
    configured: Any = timm.get_pretrained_cfg(rest, allow_unregistered=True)
    if configured is None or not (configured.hf_hub_id or configured.url):
        raise ModelError(f"timm has no weights for '{rest}'; give a file: --weights FILE.")
    origin = configured.hf_hub_id or configured.url
    place = _cached(configured)
    if not place.exists() and not download:
        raise _missing(name, place, origin)
    try:
        return timm.create_model(rest, pretrained=True, in_chans=input_shape[0]).state_dict()
    except Exception as error:
        raise _not_fetched(name, origin, error) from error


def _cached(configured: Any) -> Path:
    """Where timm, or the hub that it fetches from, keeps the weights."""
    if not configured.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(configured.url).name
    from huggingface_hub import constants, try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(configured.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found)
    return Path(constants.HF_HUB_CACHE) / f"models--{configured.hf_hub_id.replace('/', '--')}" / "model.safetensors"


def _missing(name: str, place: Path, origin: str) -> ModelError:
    return ModelError(
        f"The default weights of '{name}' were looked for in '{place}' and are not there; get them from {origin}, let "
        f"them be fetched with --set data.download=true, or give a file with --weights FILE."
    )


def _not_fetched(name: str, origin: str, error: Exception) -> ModelError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ModelError(
        f"The default weights of '{name}' could not be had from {origin} ({reason}); give a file with --weights FILE."
    )
