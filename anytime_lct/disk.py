"""Files on disk: written whole or not at all, and records read back with a sentence where they are damaged."""

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
    """A part of a file: it refuses unknown keys and values of another type, and never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


def write(path: Path, content: str | bytes, error: type[LCTError], remedy: str = "choose another folder") -> str:
    """Write a file under a temporary name, flush it to the disk, and only then give it its name.

    Text becomes UTF-8. Returns the sha256 sum of the bytes; raises `error`, and leaves nothing half-written, where the
    disk refuses.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        digest = flush(part, content.encode() if isinstance(content, str) else content)
        part.replace(path)
        sync(path.parent)
    except OSError as cause:
        with suppress(OSError):
            part.unlink()
        raise error(f"Expected a place to write '{path}', got: {cause.strerror or cause}; {remedy}.") from None
    return digest


def flush(path: Path, content: bytes) -> str:
    """Write a file of a folder that takes its own name when it is whole; return the sha256 sum. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def sync(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_text(path: Path, error: type[LCTError], remedy: str) -> str:
    """Read a UTF-8 file, or raise `error` with what to do about it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"Expected the file '{path}', which does not exist; {remedy}.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"Expected '{path}' to be a readable text file, got: {cause}; {remedy}.") from None


def parse(kind: type[ModelT], text: str, path: Path, error: type[LCTError], remedy: str) -> ModelT:
    """Read JSON text of format 1, or raise `error`: not JSON, a newer format, or the first wrong value."""
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
        return kind.model_validate_json(text)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        says = first["msg"].removeprefix("Value error, ")
        raise error(f"The file '{path}' is damaged{' at ' + where if where else ''}: {says}; {remedy}.") from None
