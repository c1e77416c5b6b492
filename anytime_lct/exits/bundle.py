"""The exported folder: everything a device needs to answer, with checksums of every file.

BUNDLE/manifest.json  profile.json  thresholds.json (where searched)
BUNDLE/tokenizer.json                   of a network on texts: the library tokenizers makes tokens of them by it
BUNDLE/parity.npz                       a few inputs, "input", and the logits of every exit, "exit_1" .. "exit_N"
BUNDLE/exit_1.onnx .. exit_N.onnx       whole sub-models, "input" -> "logits", for any ONNX runtime
BUNDLE/group_1.onnx .. group_N.onnx     "input" -> "hidden" (the last: "logits"), for resumable execution
BUNDLE/critic_1.onnx ..                 "input" -> "logits", from a hidden tensor to an answer
    of a text, with constants for the state of every LSTM, state_1_h, state_1_c, and outputs state_1_h_next, ..
BUNDLE/anytime.onnx                     optional: all exits, "input" and "thresholds" -> "logits" and "exit"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from anytime_lct.disk import Record, parse, read_text, write
from anytime_lct.errors import BundleError, ProfileError
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.tasks import TASKS, InputKind, Task, TaskName
from anytime_lct.exits.thresholds import ThresholdTable

MANIFEST = "manifest.json"


class File(Record):
    """A file of the bundle: its plain name, checksum and size."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.(onnx|json|npz)$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Preprocessing(Record):
    """How raw inputs become network inputs.

    Images of another size than (height, width) are resized: with `resize`, their shorter side becomes that long and
    their centre is cropped; without it they are stretched. Transparent parts lie on a white `ground`. Pixels x of
    [0, 1] become (x - mean) / std, per channel. Character k of `symbols` is number k of a text, whose file is decoded
    by `encoding` or, without one, by its byte-order mark or as UTF-8. Arrays are network
    inputs as they are: floats of a `shape`, or numbers of `tokens`, from 0 on. With a `tokenizer` these are of texts;
    `tokenizer_json` is what its file holds, "" where there is none.
    """

    kind: InputKind
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    ground: Literal["white"] | None = None
    symbols: str = ""
    encoding: str | None = None
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    tokens: Annotated[int, Field(ge=1)] | None = None
    tokenizer: File | None = None
    tokenizer_json: Annotated[str, Field(exclude=True)] = ""

    @property
    def takes_text(self) -> bool:
        """Whether inputs can be texts."""
        return self.kind == "text" or self.tokenizer is not None

    @model_validator(mode="after")
    def _complete(self) -> Preprocessing:
        sizes = (self.channels, self.height, self.width)
        if self.kind == "text":
            if not self.symbols or len(set(self.symbols)) != len(self.symbols):
                raise ValueError("a text needs its symbols, each once")
        elif self.kind == "array":
            if not self.shape:
                raise ValueError("an array needs a shape")
        elif any(size is None or size < 1 for size in sizes):
            raise ValueError("an image needs channels, height and width")
        elif any(len(numbers) not in (0, self.channels) for numbers in (self.mean, self.std)) or 0.0 in self.std:
            raise ValueError("an image needs a mean and a std, not zero, for every channel")
        elif self.resize is not None and self.resize < max(self.height or 0, self.width or 0):
            raise ValueError("resize must be at least the height and the width of the image")
        return self


class Manifest(Record):
    """What is in the bundle. `served` are the exits that it can answer with; indices count from 1.

    All graphs have one `precision`. `largest_difference` is between the graphs' logits and torch's or, for int8,
    between those of the chain of groups and of the whole exits. `reads_on` is whether groups and critics on text,
    given the states that they left, answer the characters that follow as they would behind the whole text. `parity` are
    inputs with the logits that any execution provider must give for them.
    """

    format: Literal[1] = 1
    toolkit: str
    task: TaskName
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
    single: File | None = None
    served: Annotated[tuple[int, ...], Field(min_length=1)]
    largest_difference: Annotated[float, Field(ge=0.0)]
    precision: Literal["float32", "int8"] = "float32"
    reads_on: bool = False
    profile: File
    thresholds: File | None = None
    parity: File | None = None

    @model_validator(mode="after")
    def _can_serve(self) -> Manifest:
        if list(self.served) != sorted(set(self.served)):
            raise ValueError("the served exits are not in rising order")
        if len(self.classes) != self.outputs:
            raise ValueError(f"{self.outputs} outputs need as many class names, not {len(self.classes)}")
        for i in self.served:
            # A bundle with groups chains them to every exit, and one without has every exit whole.
            chained = len(self.groups) >= i and (i == self.num_groups or i in self.critics)
            if not 1 <= i <= self.num_groups or not (chained if self.groups else i in self.exits):
                raise ValueError(f"exit {i} is listed as served but has no files")
        return self

    @property
    def row(self) -> Task:
        """The row of the task: its metric, and how outputs are read."""
        return TASKS[self.task]

    @property
    def samples(self) -> str:
        """What samples are called: images, characters or samples."""
        return "samples" if self.preprocessing.kind == "array" else self.row.samples

    @property
    def symbols(self) -> int:
        """The symbols or tokens that inputs are numbers of; 0 for floats."""
        return self.outputs if self.row.is_text else self.preprocessing.tokens or 0

    def as_json(self) -> str:
        """Return the text of manifest.json."""
        return self.model_dump_json(indent=1) + "\n"

    def files(self) -> list[File]:
        """Return every file the manifest names."""
        others = [self.single, self.profile, self.thresholds, self.parity, self.preprocessing.tokenizer]
        graphs = [*self.exits.values(), *self.groups, *self.critics.values()]
        return [*graphs, *(file for file in others if file is not None)]


@dataclass(frozen=True)
class Bundle:
    """An exported folder whose files have been checked; `thresholds` are its rules for stopping, where it has any."""

    path: Path
    manifest: Manifest
    profile: Profile
    thresholds: ThresholdTable | None = None

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Bundle:
        """Open a bundle, compare every file with its size and, with `verify`, its checksum; raises BundleError."""
        folder = Path(path)
        manifest = _read_manifest(folder)
        for file in manifest.files():
            stored = folder / file.name
            if not stored.is_file():
                raise BundleError(f"The bundle '{folder}' lacks '{file.name}'; copy or export it again.")
            try:
                is_whole = stored.stat().st_size == file.bytes and (not verify or describe_file(stored) == file)
            except OSError as error:
                raise BundleError(
                    f"The bundle's file '{stored}' cannot be read: {error.strerror or error}; export it again."
                ) from None
            if not is_whole:
                raise BundleError(
                    f"The bundle's file '{stored}' is truncated or altered; copy or export the bundle again."
                )
        try:
            profile = Profile.load(folder / manifest.profile.name)
            rules = manifest.thresholds and ThresholdTable.load(folder / manifest.thresholds.name)
        except ProfileError as error:
            raise BundleError(f"The bundle '{folder}' has no usable profile: {error}") from None
        if profile.num_groups != manifest.num_groups:
            raise BundleError(f"The profile in the bundle '{folder}' is of another network; export the bundle again.")
        if rules and rules.of_exits(manifest.served) != rules:
            raise BundleError(f"The thresholds in the bundle '{folder}' visit exits it lacks; export the bundle again.")
        return cls(folder, _with_tokenizer(manifest, folder), profile, rules)

    def group(self, i: int) -> Path:
        """Return the file of layer group i, from 1."""
        return self.path / self.manifest.groups[i - 1].name

    def critic(self, i: int) -> Path:
        """Return the file of critic i."""
        return self.path / self.manifest.critics[i].name

    def exit(self, i: int) -> Path:
        """Return the file of the whole sub-model i."""
        return self.path / self.manifest.exits[i].name


@dataclass(frozen=True)
class Contents:
    """What a bundle holds: which `exits` (None: all), `only` whole exits or only groups, and a `single` file."""

    exits: Sequence[int] | None = None
    only: Literal["exits", "groups"] | None = None
    single: bool = False


ALL = Contents()


def is_bundle(path: Path) -> bool:
    """Return whether a folder looks like a bundle."""
    return (path / MANIFEST).is_file()


def describe_file(path: Path) -> File:
    """Return a file's name, checksum and size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return File(name=path.name, sha256=digest.hexdigest(), bytes=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, whole or not at all."""
    write(folder / MANIFEST, manifest.as_json(), BundleError)


def _with_tokenizer(manifest: Manifest, folder: Path) -> Manifest:
    file = manifest.preprocessing.tokenizer
    if file is None:
        return manifest
    content = read_text(folder / file.name, BundleError, "export the bundle again")
    rules = manifest.preprocessing.model_copy(update={"tokenizer_json": content})
    return manifest.model_copy(update={"preprocessing": rules})


def _read_manifest(folder: Path) -> Manifest:
    if not is_bundle(folder):
        raise BundleError(
            f"Expected an exported bundle, got '{folder}', which has no {MANIFEST}; write one with: "
            f"anytime-lct export RUN."
        )
    remedy = "copy or export the bundle again"
    text = read_text(folder / MANIFEST, BundleError, remedy)
    return parse(Manifest, text, folder / MANIFEST, BundleError, remedy)
