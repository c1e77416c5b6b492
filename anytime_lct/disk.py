"""Files on disk: written whole or not at all, and read as records; damage is reported in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from anytime_lct.errors import LCTError


class Record(BaseModel):
    """A part of a file: unknown keys and values of another type are refused, and it is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


def write(path: Path, content: str | bytes, error: type[LCTError], remedy: str = "choose another folder") -> str:
    """Write a file under a temporary name, flush it to the disk, and rename it last.

    Text is encoded as UTF-8. Returns the sha256 sum of the bytes. Where the disk refuses, raises `error` and leaves no
    partial file.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        digest = flush(part, content.encode() if isinstance(content, str) else content)
        part.replace(path)
        sync(path.parent)
    except OSError as cause:
        with suppress(OSError):
            part.unlink()
        raise error(f"Expected '{path}' to be writable, got: {cause.strerror or cause}; {remedy}.") from None
    return digest


def flush(path: Path, content: bytes) -> str:
    """Write and flush a file of a folder that is renamed when it is complete; return the sha256 sum. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def sync(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_text(path: Path, error: type[LCTError], remedy: str) -> str:
    """Read a UTF-8 file, or raise `error` with the remedy."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"Expected the file '{path}', which does not exist; {remedy}.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"Expected '{path}' to be a readable text file, got: {cause}; {remedy}.") from None


def parse(record_type: type[ModelT], text: str, path: Path, error: type[LCTError], remedy: str) -> ModelT:
    """Parse JSON text of format 1, or raise `error`: not JSON, a newer format, or the first wrong value."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise error(f"Expected '{path}' to hold whole JSON, got a truncated or altered file; {remedy}.") from None
    version = cast(dict[str, object], raw).get("format") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > 1:
        raise error(
            f"Expected '{path}' in format 1, got {version}, which a newer anytime-lct wrote; update the package."
        )
    try:
        return record_type.model_validate_json(text)
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise error(f"The file '{path}' is damaged{' at ' + key if key else ''}: {reason}; {remedy}.") from None
