"""What every sub-model costs and how well it does: the file profile.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from anytime_lct.disk import Record, parse, read_text, write
from anytime_lct.errors import ProfileError
from anytime_lct.exits.tasks import METRICS, Metric, MetricName

NAME = "profile.json"
WEIGHTS = ("main.safetensors", "critics.safetensors")  # of a run folder
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Cost(Record):
    """Multiply-adds for one sample (for text: one character) and parameters."""

    flops: Count
    params: Count

    def __add__(self, other: Cost) -> Cost:
        return Cost(flops=self.flops + other.flops, params=self.params + other.params)


class Quality(Record):
    """A metric with its 95% interval and the mean loss, in nats or squared errors, over `samples` samples."""

    value: Finite
    low: Finite
    high: Finite
    loss: Finite
    samples: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _value_in_interval(self) -> Quality:
        if not self.low - 1e-6 <= self.value <= self.high + 1e-6:
            raise ValueError(f"the value {self.value} lies outside its interval {self.low} to {self.high}")
        return self


class Latency(Record):
    """Median seconds for one sample on one thread."""

    seconds: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    engine: Literal["torch", "onnxruntime"]
    machine: str


class CalibrationGap(Record):
    """Expected calibration error on test data, from 0 to 1, before and after dividing the logits by the temperature."""

    before: Annotated[float, Field(ge=0.0, le=1.0)]
    after: Annotated[float, Field(ge=0.0, le=1.0)]


class Exit(Record):
    """What was measured of sub-model `index`; its logits divided by `temperature` give calibrated probabilities."""

    index: Annotated[int, Field(ge=1)]
    validation: Quality | None
    test: Quality
    latency: Latency | None = None
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    calibration: CalibrationGap | None = None


class Profile(Record):
    """Costs of N groups and N-1 critics, kept apart, and quality of N exits, all in order from 1.

    `p_worse[i-1][j-1]` is the one-sided p-value of "exit i is not worse than exit j" on the same samples of
    `split`: small where i is significantly worse. `split` is the one that choices are made on. `weights` is the
    checksum of the measured weights, where they come from a run folder.
    """

    format: Literal[1] = 1
    model: str
    data: str
    metric: MetricName
    groups: Annotated[tuple[Cost, ...], Field(min_length=1)]
    critics: tuple[Cost, ...]
    exits: tuple[Exit, ...]
    p_worse: tuple[tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...], ...]
    split: Literal["validation", "test"] = "validation"
    weights: str = ""

    @model_validator(mode="after")
    def _parts_agree(self) -> Profile:
        N = len(self.groups)
        if len(self.critics) != N - 1:
            raise ValueError(f"{N} groups need {N - 1} critics, not {len(self.critics)}")
        if [exit.index for exit in self.exits] != list(range(1, N + 1)):
            raise ValueError(f"{N} groups need the exits 1 to {N} in order")
        if len(self.p_worse) != N or any(len(row) != N for row in self.p_worse):
            raise ValueError(f"p_worse needs {N} rows of {N} p-values")
        if self.split == "validation" and any(exit.validation is None for exit in self.exits):
            raise ValueError("choices are made on the validation split, but an exit has no quality there")
        return self

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def row(self) -> Metric:
        """The row of the metric: its direction, and how values are shown."""
        return METRICS[self.metric]

    def cost(self, index: int) -> Cost:
        """Cost of sub-model i alone: f_1 + .. + f_i + c_i."""
        total = sum(self.groups[: self._checked(index)], start=Cost(flops=0, params=0))
        return total + self.critics[index - 1] if index < self.num_groups else total

    def quality(self, index: int) -> Quality:
        """Quality of exit i on the split that choices are made on."""
        exit = self.exits[self._checked(index) - 1]
        return exit.test if self.split == "test" or exit.validation is None else exit.validation

    def merit(self, index: int) -> float:
        """Quality of exit i as a number where higher is better, whatever the metric."""
        return self.row.merit(self.quality(index).value)

    def save(self, path: Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        write(path, self.model_dump_json(indent=1) + "\n", ProfileError)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile.json, or the one in a folder.

        Raises ProfileError where it is missing or damaged, or was measured on other weights than those beside it.
        """
        path = path / NAME if path.is_dir() else path
        text = read_text(path, ProfileError, "write it with: anytime-lct analyze RUN")
        profile = parse(cls, text, path, ProfileError, "write it again with: anytime-lct analyze RUN")
        if profile.weights and (path.parent / WEIGHTS[0]).exists() and weights_sum(path.parent) != profile.weights:
            raise ProfileError(
                f"Expected a profile of the weights in '{path.parent}', got one of earlier weights; measure them with: "
                f"anytime-lct analyze {path.parent}."
            )
        return profile

    def _checked(self, index: int) -> int:
        if not 1 <= index <= self.num_groups:
            raise ProfileError(f"Expected an exit of 1 to {self.num_groups}, got {index}; choose one of the profile.")
        return index


def weights_sum(run: Path) -> str:
    """Return the sha256 checksum of a run folder's weights; raises ProfileError where they cannot be read."""
    digest = hashlib.sha256()
    try:
        for name in WEIGHTS:
            with (run / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ProfileError(
            f"Expected weights in '{run}', got: {error.strerror or error}; train them with: anytime-lct train."
        ) from None
    return digest.hexdigest()
