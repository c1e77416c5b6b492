"""Tasks as rows: what exits are measured by, and how their outputs are read; needs no torch.

    task             metric      better   outputs are read as   a sample stops by
    classification   accuracy    higher   a class               its confidence
    language-model   bpc         lower    the next character    the confidence of its last character
    regression       rmse        lower    numbers               nothing: numbers have no confidence

The loss and the score of a sample, which need torch, are `anytime_lct.task`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classification", "language-model", "regression"]
InputKind = Literal["image", "text", "array"]  # arrays are floats of any shape, or numbers of tokens (T,)
MetricName = Literal["accuracy", "bpc", "rmse"]
Floor = Literal["min_accuracy", "max_bpc", "max_rmse"]


@dataclass(frozen=True)
class Metric:
    """What exits are measured by: the mean of a score over the samples of a split, or its `root`.

    `rises` says that higher is better, `of_hits` that the score of a sample is 1 or 0. A value is shown times `scale`,
    in this `form`, with the `sign` behind it, or the `unit` where it stands by itself; a difference of values is one of
    `points`, `amount` in words. `axis` is the label of a figure, and `sample` what multiply-adds are counted for.
    `floor` is the condition of `select`.
    """

    name: MetricName
    rises: bool
    of_hits: bool
    scale: int
    form: str
    sign: str
    unit: str
    points: str
    amount: str
    axis: str
    sample: str
    floor: Floor
    root: bool = False

    def merit(self, value: float) -> float:
        """Return a value as a number where higher is better."""
        return value if self.rises else -value

    def show(self, value: float) -> str:
        """Format a value in a column that names the metric.

        >>> ACCURACY.show(0.9312), BPC.show(2.5)
        ('93.12%', '2.500')
        """
        return f"{self.scale * value:{self.form}}{self.sign}"

    def show_with_unit(self, value: float) -> str:
        """Format a value that stands by itself.

        >>> ACCURACY.show_with_unit(0.9312), BPC.show_with_unit(2.5)
        ('93.12%', '2.500 BPC')
        """
        return f"{self.scale * value:{self.form}}{self.unit}"


ACCURACY = Metric(
    "accuracy", rises=True, of_hits=True, scale=100, form=".2f", sign="%", unit="%", points="points",
    amount="points of accuracy", axis="accuracy, %", sample="sample", floor="min_accuracy",
)  # fmt: skip
BPC = Metric(
    "bpc", rises=False, of_hits=False, scale=1, form=".3f", sign="", unit=" BPC", points="BPC",
    amount="bits per character", axis="bits per character (better is up)", sample="character", floor="max_bpc",
)  # fmt: skip
RMSE = Metric(
    "rmse", rises=False, of_hits=False, scale=1, form=".5g", sign="", unit=" RMSE", points="RMSE",
    amount="the root mean squared error, in the unit of the targets,", sample="sample", floor="max_rmse", root=True,
    axis="root mean squared error (better is up)",
)  # fmt: skip
METRICS: dict[MetricName, Metric] = {metric.name: metric for metric in (ACCURACY, BPC, RMSE)}


@dataclass(frozen=True)
class Task:
    """A task: its metric, what its samples and outputs are called, and how outputs are read.

    Where it `is_text`, inputs are symbols (B, T) and outputs (B, T, K), one at every step; else inputs are images
    (B, C, H, W) or arrays (B, ..) and outputs (B, K). `answer` is what an output is read as, `output` what one of its K
    values is for.
    Where it `is_numbers`, they are the answer themselves; else they are logits of probabilities, of which a
    sample has a confidence, and `predict` shows the `top` likeliest. `no_rules` is why samples do not stop by rules for
    a mean budget, "" where they do.
    """

    metric: Metric
    is_text: bool
    samples: str
    answer: str
    output: str
    outputs: str
    top: int = 0
    is_numbers: bool = False
    no_rules: str = ""


TASKS: dict[TaskName, Task] = {
    "classification": Task(
        ACCURACY, is_text=False, samples="images", answer="class", output="class", outputs="classes",
        top=1,
    ),
    "language-model": Task(
        BPC, is_text=True, samples="characters", answer="next character", output="symbol",
        outputs="symbols", top=5, no_rules="a language model, whose characters would each stop at another exit",
    ),
    "regression": Task(
        RMSE, is_text=False, samples="images", answer="numbers", output="target", outputs="targets", is_numbers=True,
        no_rules="one of numbers, which have no confidence",
    ),
}  # fmt: skip
