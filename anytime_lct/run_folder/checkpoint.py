"""Checkpoints: one safetensors file per layer group, so that a run can resume with another number of workers.

    RUN/checkpoints/step-00000320/group_1.safetensors .. group_N.safetensors, progress.json

A checkpoint is written under another name, flushed to the disk and renamed when it is complete; the two newest stay, of
a finished run the newest. progress.json holds the sha256 sums of the files, the position in the run, whether the files
have the state of optimizers, and the step at which these last started without one.
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

MAX_CHECKPOINTS = 2
PROGRESS = "progress.json"


def begin(folder: Path, step: int) -> Path:
    """Make the folder that the layer groups of a checkpoint are written into, and remove those of failed attempts."""
    part = folder / f".step-{step:08d}.part"
    with _removing_on_error(part):
        for stale in folder.glob(".step-*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        part.mkdir(parents=True)
    return part


def write_group(part: Path, index: int, tensors: dict[str, Tensor]) -> str:
    """Write one layer group and return its sha256 sum; where that fails, earlier checkpoints stay complete."""
    with _removing_on_error(part):
        return disk.flush(part / _file_name(index), _bytes(tensors))


def commit(
    part: Path, step: int, sums: Mapping[int, str], progress: dict[str, Any], keep: int = MAX_CHECKPOINTS
) -> Path:
    """Rename a checkpoint once every group is written, and keep the newest; `sums` are the sha256 sums by group."""
    folder, final = part.parent, part.parent / f"step-{step:08d}"
    digests = {_file_name(index): digest for index, digest in sums.items()}
    with _removing_on_error(part):
        disk.flush(part / PROGRESS, json.dumps({"step": step, "sha256": digests, **progress}, indent=1).encode())
        disk.sync(part)
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        disk.sync(folder)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def weights(folder: Path, num_groups: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights of the main network and of the critics from a checkpoint's folder, renamed yet or not.

    They are the averages where the run keeps those.
    """
    main: dict[str, Tensor] = {}
    critics: dict[str, Tensor] = {}
    for index in range(1, num_groups + 1):
        with safe_open(folder / _file_name(index), "pt") as file:
            main |= _kept(file, "main")
            critics |= {f"critic_{index}.{name}": value for name, value in _kept(file, "critic").items()}
    return main, critics


def _kept(file: Any, kind: str) -> dict[str, Tensor]:
    """Return the weights of a kind, main or critic, by name (`learner.Learner.state`)."""
    names = [key.partition(".") for key in file.keys()]  # noqa: SIM118
    values = {name: file.get_tensor(f"{kind}.{name}") for of, _, name in names if of == kind}
    averages = {name: file.get_tensor(f"{kind}_average.{name}") for of, _, name in names if of == f"{kind}_average"}
    count = file.get_tensor(f"{kind}_averaged") if averages else 1
    return values | {name: value / count for name, value in averages.items()}


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint below `folder`, or None."""
    checkpoints = _checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def fresh_start(folder: Path) -> int:
    """Return the step at which the optimizers of a run start, or last started, without state; 0 for its beginning.

    This is the step of the newest checkpoint below `folder` where it has no such state. Raises CheckpointError.
    """
    path = newest(folder)
    if path is None:
        return 0
    progress = _progress(path)
    return progress["fresh_start"] if progress["has_optimizer"] else progress["step"]


def load(
    path: Path, num_groups: int, indices: Iterable[int] | None = None
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Read the tensors of the layer groups `indices` (from 1; default: all) and the progress of a checkpoint.

    Raises CheckpointError where it is damaged or has another number of groups.
    """
    progress = _progress(path)
    sums = progress["sha256"]
    if len(sums) != num_groups:
        raise CheckpointError(f"The checkpoint '{path}' holds {len(sums)} layer groups, but the run has {num_groups}.")
    groups = {}
    for index in range(1, num_groups + 1) if indices is None else indices:
        name = _file_name(index)
        try:
            content = (path / name).read_bytes()
        except OSError:
            raise _damage_error(path, name) from None
        if hashlib.sha256(content).hexdigest() != sums.get(name):
            raise _damage_error(path, name)
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
            f"The weights '{path}' are truncated or not a safetensors file; copy them again or train again."
        ) from None


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    """Format tensors; those that share memory, such as tied weights, are copied, because the format needs it."""
    separate, addresses = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if address in addresses else value
        addresses.add(address)
    return format_safetensors(separate)


def _file_name(index: int) -> str:
    return f"group_{index}.safetensors"


@contextmanager
def discarding_on_error(part: Path) -> Iterator[None]:
    """Remove the unfinished checkpoint where this process fails, or another that it waits for."""
    try:
        yield
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _removing_on_error(part: Path) -> Iterator[None]:
    """Remove the unfinished checkpoint, and raise CheckpointError, where writing fails."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"Could not write the checkpoint '{part}': {error.strerror or error}; the earlier ones are complete, "
            f"so make room and continue with --resume."
        ) from None


def _progress(path: Path) -> dict[str, Any]:
    try:
        progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        return {key: progress[key] for key in ("step", "sha256", "at", "sums", "has_optimizer", "fresh_start")}
    except (OSError, ValueError, KeyError, TypeError):
        raise _damage_error(path, PROGRESS) from None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _damage_error(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint '{path}' is damaged: '{name}' is missing, truncated or altered; remove that folder to resume "
        f"from the checkpoint before it, if there is one."
    )
