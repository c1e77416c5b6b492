"""The exported folder: everything a device needs to answer, with the sums to know that it is whole.

    BUNDLE/manifest.json  profile.json
    BUNDLE/exit_1.onnx .. exit_N.onnx       whole sub-models, "input" -> "logits", for any ONNX runtime
    BUNDLE/group_1.onnx .. group_N.onnx     "input" -> "hidden" (the last: "logits"), for resumable execution
    BUNDLE/critic_1.onnx ..                 "input" -> "logits", what turns a hidden tensor into an answer
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anytime_lct.errors import BundleError, ProfileError
from anytime_lct.profile import NAME as PROFILE
from anytime_lct.profile import Profile

MANIFEST = "manifest.json"
FORMAT = 1


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Fact):
    """A file of the bundle, by its plain name, its sum and its size."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.(onnx|json)$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Preprocessing(_Fact):
    """How raw inputs become network inputs.

    Images are resized to (height, width), scaled to [0, 1], and have `mean` subtracted and are divided by `std`, each
    per channel. Character k of `symbols` is number k of a text.
    """

    kind: Literal["image", "text"]
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    symbols: str = ""


class Manifest(_Fact):
    """What is in the bundle. `served` are the exits it can answer with; keys and numbers count from 1."""

    format: Literal[1] = FORMAT
    toolkit: str
    task: Literal["classification", "language-model"]
    model: str
    num_groups: Annotated[int, Field(ge=1)]
    input_shape: tuple[int | str, ...]
    input_dtype: Literal["float32", "int64"]
    outputs: Annotated[int, Field(ge=1)]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    opset: int
    exits: dict[int, File]
    groups: tuple[File, ...]
    critics: dict[int, File]
    served: Annotated[tuple[int, ...], Field(min_length=1)]
    largest_difference: Annotated[float, Field(ge=0.0)]
    profile: File

    @model_validator(mode="after")
    def _can_serve(self) -> Manifest:
        for i in self.served:
            chained = len(self.groups) >= i and (i == self.num_groups or i in self.critics)
            if not 1 <= i <= self.num_groups or not (chained or i in self.exits):
                raise ValueError(f"exit {i} is said to be served but has no files")
        return self

    def files(self) -> list[File]:
        """Return every file the manifest names."""
        return [*self.exits.values(), *self.groups, *self.critics.values(), self.profile]


@dataclass(frozen=True)
class Bundle:
    """An exported folder that was found whole."""

    path: Path
    manifest: Manifest
    profile: Profile

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Bundle:
        """Open a bundle and, unless told otherwise, compare every file with its sum; raises BundleError."""
        folder = Path(path)
        manifest = _read_manifest(folder)
        for file in manifest.files():
            found = folder / file.name
            if not found.is_file():
                raise BundleError(f"The bundle '{folder}' lacks '{file.name}'; copy or export it again.")
            if found.stat().st_size != file.bytes or (verify and describe_file(found) != file):
                raise BundleError(f"The bundle's file '{found}' is truncated or altered; copy or export the bundle again.")
        try:
            profile = Profile.load(folder / manifest.profile.name)
        except ProfileError as error:
            raise BundleError(f"The bundle '{folder}' has no usable profile: {error}") from None
        if profile.num_groups != manifest.num_groups:
            raise BundleError(f"The profile in the bundle '{folder}' is of another network; export the bundle again.")
        return cls(folder, manifest, profile)

    def group(self, i: int) -> Path:
        """Return the file of layer group i, from 1."""
        return self.path / self.manifest.groups[i - 1].name

    def critic(self, i: int) -> Path:
        """Return the file of critic i."""
        return self.path / self.manifest.critics[i].name

    def exit(self, i: int) -> Path:
        """Return the file of the whole sub-model i."""
        return self.path / self.manifest.exits[i].name


def is_bundle(path: Path) -> bool:
    """Tell whether a folder looks like a bundle."""
    return (path / MANIFEST).is_file()


def describe_file(path: Path) -> File:
    """Return a file's name, sum and size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return File(name=path.name, sha256=digest.hexdigest(), bytes=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json and flush it to the disk."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> Manifest:
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError:
        raise BundleError(
            f"Expected an exported bundle, got '{folder}', which has no {MANIFEST}; write one with anytime-lct export RUN."
        ) from None
    try:
        told = json.loads(content).get("format")
    except (ValueError, AttributeError):
        raise BundleError(f"The manifest of the bundle '{folder}' is no JSON object; copy or export the bundle again.") from None
    if isinstance(told, int) and told > FORMAT:
        raise BundleError(
            f"The bundle '{folder}' has format {told}, but this version reads format {FORMAT}; install a newer anytime-lct."
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"The manifest of the bundle '{folder}' is damaged at {where}: {first['msg'].removeprefix('Value error, ')}; "
            f"copy or export the bundle again."
        ) from None
