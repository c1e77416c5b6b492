"""How confident an exit must be for a sample to stop there: searched on validation data, stored beside the profile.

RUN/thresholds.json, BUNDLE/thresholds.json: one rule per mean budget
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from anytime_lct.disk import Record, parse, read_text, write
from anytime_lct.errors import BudgetError, NothingFitsError, ProfileError
from anytime_lct.exits.profile import Quality

NAME = "thresholds.json"
Measure = Literal["max-probability", "margin", "entropy"]
MEASURES: tuple[Measure, ...] = ("max-probability", "margin", "entropy")


class MeanCost(Record):
    """Mean multiply-adds of a sample, with the 95% interval of the mean."""

    flops: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    low: float
    high: float


class Thresholds(Record):
    """A rule for stopping: a sample stops at the first visited exit whose confidence is at least its threshold.

    `at` has the thresholds of the visited exits by rising index; that of the deepest is 0, which stops every sample. An
    exit that is not in it is skipped without running its critic. `shares` are the fractions of the test samples that
    stop at each; `accuracy` and `cost` are measured on test data, which the search does not see. `fixed` is the most
    accurate single exit, by validation, that costs no more than `mean_flops`, and `p_value` that of "no rule is better
    than this exit" on validation: where it is 0.05 or more, or None as no rule seems better, every sample stops there.
    """

    mean_flops: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    measure: Measure
    at: dict[int, Annotated[float, Field(ge=0.0, le=1.0)]]
    shares: dict[int, Annotated[float, Field(ge=0.0, le=1.0)]]
    accuracy: Quality
    cost: MeanCost
    fixed: int | None = None
    fixed_accuracy: Quality | None = None
    p_value: Annotated[float, Field(ge=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _stops_all(self) -> Thresholds:
        exits = list(self.at)
        if not exits or exits != sorted(exits) or exits[0] < 1 or self.at[exits[-1]] != 0.0:
            raise ValueError("thresholds need exits in rising order, the deepest with a threshold of 0")
        return self


class ThresholdTable(Record):
    """The rules of a network, by rising mean cost.

    `network` is a checksum of the weights and temperatures that they were searched for (`run_folder.fingerprint`).
    """

    format: Literal[1] = 1
    network: str = ""
    rules: tuple[Thresholds, ...]

    def extended(self, rules: Iterable[Thresholds]) -> ThresholdTable:
        """Return the table with more rules; a rule for the same budget replaces the earlier one."""
        merged = {rule.mean_flops: rule for rule in (*self.rules, *rules)}
        return self.model_copy(update={"rules": tuple(merged[flops] for flops in sorted(merged))})

    def of_exits(self, served: Iterable[int]) -> ThresholdTable:
        """Return the table with only the rules whose visited exits are all among `served`."""
        exits = set(served)
        return self.model_copy(update={"rules": tuple(rule for rule in self.rules if exits >= rule.at.keys())})

    def within(self, mean_flops: float) -> Thresholds:
        """Return the rule of the largest mean budget up to `mean_flops`; raises NothingFitsError and BudgetError.

        >>> table.within(20e6).mean_flops  # doctest: +SKIP
        18000000.0
        """
        if not mean_flops > 0:
            raise BudgetError(f"Expected a mean budget that is a positive number, got {mean_flops!r}; give another.")
        fitting = [rule for rule in self.rules if rule.mean_flops <= mean_flops * (1 + 1e-9)]
        if not fitting:
            lowest = f"one for {min(rule.mean_flops for rule in self.rules):.4g}" if self.rules else "none"
            raise NothingFitsError(
                f"Expected a rule for a mean of at most {mean_flops:.4g} FLOPs, got {lowest} at the lowest; search one "
                f"with: anytime-lct thresholds RUN --mean-flops {mean_flops:.4g}."
            )
        return max(fitting, key=lambda rule: rule.mean_flops)

    def save(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all."""
        write(path, self.model_dump_json(indent=1) + "\n", ProfileError)

    @classmethod
    def load(cls, path: Path) -> ThresholdTable:
        """Read a thresholds.json; raises ProfileError where it is missing or damaged."""
        text = read_text(path, ProfileError, "search thresholds with: anytime-lct thresholds RUN --mean-flops 20M")
        return parse(cls, text, path, ProfileError, "search thresholds again with: anytime-lct thresholds RUN")
