"""Checkpoints: one safetensors file a layer group, so that a run can go on with another number of workers.

    RUN/checkpoints/step-00000320/group_1.safetensors .. group_N.safetensors, progress.json

A checkpoint is written under another name, flushed to the disk and renamed when it is whole; the two newest are kept.
progress.json holds the sums of the files and where in the run they stand.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from anytime_lct import disk
from anytime_lct.errors import CheckpointError

KEPT = 2
PROGRESS = "progress.json"


def begin(folder: Path, step: int) -> Path:
    """Make the folder that the layer groups of a checkpoint are written into, and clear what failed before it."""
    part = folder / f".step-{step:08d}.part"
    with _or_nothing(part):
        for left in folder.glob(".step-*.part"):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
    return part


def write_group(part: Path, index: int, tensors: dict[str, Tensor]) -> str:
    """Write one layer group and return its sha256 sum; whatever fails, the checkpoints before it stay whole."""
    with _or_nothing(part):
        return disk.flush(part / _group(index), _bytes(tensors))


def commit(part: Path, step: int, sums: Mapping[int, str], progress: dict[str, Any]) -> Path:
    """Give a whole checkpoint its name, once every group is written, and drop the oldest; `sums` are by group."""
    folder, final = part.parent, part.parent / f"step-{step:08d}"
    named = {_group(index): digest for index, digest in sums.items()}
    with _or_nothing(part):
        disk.flush(part / PROGRESS, json.dumps({"step": step, "sha256": named, **progress}, indent=1).encode())
        disk.sync(part)
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        disk.sync(folder)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def weights(folder: Path, num_groups: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights of the main network and of the critics out of a checkpoint's folder, finished or not."""
    main: dict[str, Tensor] = {}
    critics: dict[str, Tensor] = {}
    for index in range(1, num_groups + 1):
        with safe_open(folder / _group(index), "pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind, _, rest = name.partition(".")
                if kind == "main":
                    main[rest] = file.get_tensor(name)
                elif kind == "critic":
                    critics[f"critic_{index}.{rest}"] = file.get_tensor(name)
    return main, critics


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint below `folder`, or None."""
    found = _all(folder)
    return found[-1] if found else None


def load(
    path: Path, num_groups: int, wanted: Iterable[int] | None = None
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Read the tensors of the `wanted` layer groups (from 1; default: all) and the progress of a checkpoint.

    Raises CheckpointError where it is damaged or has another number of groups.
    """
    try:
        progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        sums = progress["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(_damaged(path, PROGRESS)) from None
    if len(sums) != num_groups:
        raise CheckpointError(f"The checkpoint '{path}' holds {len(sums)} layer groups, but the run has {num_groups}.")
    groups = {}
    for index in range(1, num_groups + 1) if wanted is None else wanted:
        name = _group(index)
        try:
            content = (path / name).read_bytes()
        except OSError:
            raise CheckpointError(_damaged(path, name)) from None
        if hashlib.sha256(content).hexdigest() != sums.get(name):
            raise CheckpointError(_damaged(path, name))
        groups[index] = parse_safetensors(content)
    return groups, progress


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, whole or not at all; raises CheckpointError."""
    disk.write(path, _bytes(tensors), CheckpointError, "make room or choose another folder")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises CheckpointError where it is missing or damaged."""
    try:
        return parse_safetensors(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"Expected weights in '{path}', which cannot be read: {error.strerror or error}."
        ) from None
    except (SafetensorError, ValueError):
        raise CheckpointError(
            f"The weights '{path}' are truncated or no safetensors file; copy them again or train again."
        ) from None


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    """Format tensors; those that share memory, as tied weights do, each get their own, which the format asks for."""
    apart, seen = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        at = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if at in seen else value
        seen.add(at)
    return format_safetensors(apart)


def _group(index: int) -> str:
    return f"group_{index}.safetensors"


@contextmanager
def _or_nothing(part: Path) -> Iterator[None]:
    """Leave nothing half-written behind where the disk refuses."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"Could not write the checkpoint '{part}': {error.strerror or error}; the earlier ones are whole, "
            f"so make room and go on with --resume."
        ) from None


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _damaged(path: Path, name: str) -> str:
    return (
        f"The checkpoint '{path}' is damaged: '{name}' is missing, truncated or altered; remove that folder to go on "
        f"from the checkpoint before it, if there is one."
    )
