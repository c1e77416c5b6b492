"""The folder of a bundle while it is written: it gets its name when it is complete, and is deleted on an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from anytime_lct import disk
from anytime_lct.errors import ExportError
from anytime_lct.exits.bundle import is_bundle

ONNX_TOOLS = ("onnx", "onnxruntime", "onnxscript", "onnx_ir")


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """Yield a folder beside `out` that becomes `out`, or with `force` replaces a bundle there; raises ExportError.

    An exception of ONNX's tools within the block is an ExportError too: their own share no base class.
    """
    out = out.resolve() if out.name in ("", "..") else out
    part, old = (out.with_name(f".{out.name}.{os.getpid()}.{suffix}") for suffix in ("part", "old"))
    if out.exists() and not (force and is_bundle(out)):
        problem = "a bundle already; replace it with --force or" if is_bundle(out) else "something else than a bundle;"
        raise ExportError(f"The path '{out}' holds {problem} choose another --out.")
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
    except OSError as error:
        raise ExportError(
            f"Could not write the bundle '{out}': {error.strerror or error}; free some space or choose another --out."
        ) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ONNX_TOOLS:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ExportError(f"Expected ONNX graphs that load and run, got: {reason}; nothing was written.") from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        if old.is_symlink():
            old.unlink()
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph and flush it to the disk; raises ExportError where it is too large for an ONNX file."""
    try:
        content = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ExportError(f"Expected less than 2 GB for '{path.name}', the limit of an ONNX file: {error}.") from error
    disk.flush(path, content)
