"""Weights as trainers save them: files are unwrapped, and their names become those of the network.

{"state_dict": {"module.model.conv1.weight": ..}, "epoch": 3}  ->  {"conv1.weight": ..}
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from anytime_lct.errors import CheckpointError
from anytime_lct.run_folder.checkpoint import load_tensors

# Keys under which trainers save a network's weights; where a file has several, the first holds.
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
# Of DataParallel and AveragedModel, of torch.compile, and of the modules of trainers such as Lightning.
PREFIX = re.compile(r"(?:module|_orig_mod|model|net)\.")
COMPILED = "_orig_mod."  # torch.compile writes it within a name too
# What averaging and profilers add to a network; it is not part of one that lacks it.
EXTRAS = re.compile(r"(?:.*\.)?(?:n_averaged|total_ops|total_params)")


def read(path: Path) -> dict[str, Tensor]:
    """Read weights from a safetensors file or a torch state dict, which is loaded with weights_only.

    Weights that a trainer wrapped, as in `{"state_dict": ..}`, are unwrapped. Raises CheckpointError where the file
    holds anything else.

    >>> read(Path("resnet18.pth"))["conv1.weight"].shape                                # doctest: +SKIP
    torch.Size([64, 3, 7, 7])
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no state dict makes torch raise errors of many types
        raise CheckpointError(
            f"Expected weights in '{path}', a safetensors file or a torch state dict that loads without running code "
            f"(weights_only), but: {_reason(error)}; save model.state_dict() alone."
        ) from None
    while isinstance(content, dict):
        content = cast("dict[Any, Any]", content)
        key = next((key for key in WRAPPER_KEYS if isinstance(content.get(key), dict)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"Expected names and tensors in '{path}', got a {type(content).__name__} of other things; save "
            f"model.state_dict() instead."
        )
    return cast("dict[str, Tensor]", content)


def rename(own: Iterable[str], weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights under the network's `own` names, and those that are left out, as no part of the network.

    Prefixes of trainers, in any order, are taken from the names or put before them, whichever fits most names. What
    profilers add, and what such a file holds beside the network, is left out.

    >>> rename(["a.weight"], {"module._orig_mod.a.weight": torch.ones(1), "n_averaged": torch.ones(1)})
    ({'a.weight': tensor([1.])}, ['n_averaged'])
    """
    names = {name.replace(COMPILED, ""): name for name in own}
    values = {name.replace(COMPILED, ""): value for name, value in weights.items()}

    def matches(pair: tuple[str, str]) -> int:
        return sum(pair[1] + name.removeprefix(pair[0]) in values for name in names)

    shared = [prefix for prefix in _prefixes(names) if all(name.startswith(prefix) for name in names)]
    ours, theirs = max(product(shared, _prefixes(values)), key=matches)  # of several as good, the shortest
    renamed, rest = dict[str, Tensor](), list[str]()
    for name, value in values.items():
        short = ours + name.removeprefix(theirs)
        if name.startswith(theirs) and short in names:
            renamed[names[short]] = value
        elif EXTRAS.fullmatch(name) or not name.startswith(theirs):
            rest.append(name)
        else:
            renamed[short] = value
    return renamed, rest


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes of trainers that some of the names begin with, the empty one and the shortest first."""
    prefixes = {""}
    for name in names:
        end = 0
        while match := PREFIX.match(name, end):
            end = match.end()
            prefixes.add(name[:end])
    return sorted(prefixes, key=len)


def _reason(error: Exception) -> str:
    """Say in a few words why torch could not load a file; what its unpickler says is long and of several lines."""
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError):
        kind = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it holds an object {kind[1]}" if kind else "it is none"
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")
