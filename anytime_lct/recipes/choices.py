"""The closed choices of a recipe, each as a type, and the ranges of its numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

Augment = Literal["none", "flip", "crop", "crop-flip", "imagenet"]
Policy = Literal["none", "randaugment", "autoaugment", "trivialaugment"]
Strategy = Literal["shares", "layers", "balanced", "measured", "memory"]
CriticKind = Literal["slim", "residual", "paper", "paper-imagenet", "own"]
Form = Literal["per-sample", "scalar"]
Matching = Literal["l1", "l2", "smooth-l1"]
CriticLoss = Literal["paper", "mixed", "cross-entropy"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
Wire = Literal["exact", "bf16"]
LogName = Literal["tensorboard", "jsonl", "mlflow", "wandb"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _not_percent(number: float) -> float:
    if 1 <= number <= 100:
        raise ValueError("shares are less than 1, like 0.4 for 40%, and multiply-adds more than 100")
    return number


ExitBudget = Annotated[Positive, AfterValidator(_not_percent)]
