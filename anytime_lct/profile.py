"""The profile of a trained network: what its groups and critics cost and what every exit is worth; profile.json.

Groups and critics are kept apart: sub-model i costs f_1 + .. + f_i + c_i, while resumable execution pays every critic
that it visits on the way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anytime_lct.errors import ProfileError

NAME = "profile.json"
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cost(_Fact):
    """Multiply-adds for one sample (for text: one character) and the number of weights."""

    flops: Annotated[int, Field(ge=0)]
    params: Annotated[int, Field(ge=0)]

    def __add__(self, other: Cost) -> Cost:
        return Cost(flops=self.flops + other.flops, params=self.params + other.params)


class Quality(_Fact):
    """The metric on a split with its 95% interval, and the mean loss in nats."""

    value: Number
    low: Number
    high: Number
    loss: Number
    samples: Annotated[int, Field(ge=1)]


class Latency(_Fact):
    """Median seconds for one sample on one thread, and what measured it where."""

    seconds: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    engine: Literal["torch", "onnxruntime"]
    machine: str


class Exit(_Fact):
    """What exit `index` (from 1) is worth."""

    index: Annotated[int, Field(ge=1)]
    validation: Quality | None
    test: Quality
    latency: Latency | None = None


class Profile(_Fact):
    """Costs and qualities of all N exits of one trained network.

    `p_worse[i-1][j-1]` is the one-sided p-value, on the same samples of `split`, of exit i being no worse than exit j:
    where it is small, i is significantly worse. `split` is what choices are made on; the test split is only reported.
    """

    format: Literal[1] = 1
    model: str
    data: str
    metric: Literal["accuracy", "bpc"]
    groups: tuple[Cost, ...]
    critics: tuple[Cost, ...]
    exits: tuple[Exit, ...]
    p_worse: tuple[tuple[Share, ...], ...]
    split: Literal["validation", "test"] = "validation"

    @model_validator(mode="after")
    def _agrees(self) -> Profile:
        n = len(self.groups)
        if n < 1 or len(self.critics) != n - 1 or [e.index for e in self.exits] != list(range(1, n + 1)):
            raise ValueError(f"{n} groups, {len(self.critics)} critics and {len(self.exits)} exits do not belong together")
        if [len(row) for row in self.p_worse] != [n] * n:
            raise ValueError(f"p_worse is not a table of {n} by {n}")
        if self.split == "validation" and any(e.validation is None for e in self.exits):
            raise ValueError("an exit has no quality on the validation split, which choices are made on")
        return self

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    def cost(self, i: int) -> Cost:
        """Cost of sub-model i: f_1..f_i and c_i."""
        return sum((*self.groups[:i], *self.critics[i - 1 : i]), Cost(flops=0, params=0))

    def resumable_cost(self, i: int) -> Cost:
        """Cost of answering at exit i after every exit before it: f_1..f_i and c_1..c_i."""
        return sum((*self.groups[:i], *self.critics[:i]), Cost(flops=0, params=0))

    def critic(self, i: int) -> Cost | None:
        """Cost of critic i; None for the main network, which has none."""
        return self.critics[i - 1] if i < self.num_groups else None

    def quality(self, i: int) -> Quality:
        """Quality of exit i on the split that choices are made on."""
        found = self.exits[i - 1]
        return found.validation if self.split == "validation" and found.validation is not None else found.test

    def better(self, a: float, b: float) -> bool:
        """Tell whether metric value `a` is better than `b`: accuracy grows, bits per character shrink."""
        return a > b if self.metric == "accuracy" else a < b

    def save(self, path: Path) -> None:
        """Write under a temporary name, flush, rename; raises ProfileError."""
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(json.dumps(self.model_dump(mode="json"), indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ProfileError(f"Could not write the profile '{path}': {error.strerror or error}.") from None

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile.json; raises ProfileError where it is missing, truncated or contradicts itself."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ProfileError(
                f"Expected a profile in '{path}', which cannot be read ({error.strerror}); write one with anytime-lct analyze RUN."
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ProfileError(
                f"The profile '{path}' is damaged at {where}: {first['msg'].removeprefix('Value error, ')}; write it again with "
                f"anytime-lct analyze RUN."
            ) from None
