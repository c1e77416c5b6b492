"""The events that a run yields: progress within an epoch, finished epochs, and notes for the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from anytime_lct.task import Facts


@dataclass(frozen=True)
class Progress:
    """Progress within an epoch: `losses` are means over the epoch so far, one per exit, in nats."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Epoch:
    """The result of an epoch, one number per exit; `scores` is the metric on the validation split, () without one.

    `warnings` are the lines about what goes wrong (`alarms`), each once a run.
    """

    epoch: int
    step: int
    seconds: float
    train_losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    scores: tuple[float, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Epoch:
        """Read what `as_json` wrote."""
        train, validation = line["train"], dict(line["validation"])
        losses = tuple(validation.pop("loss"))
        scores = next(iter(validation.values()), ())
        numbers = (tuple(train["loss"]), losses, tuple(scores))
        return cls(line["epoch"], line["step"], line["seconds"], *numbers, tuple(line.get("warnings", ())))

    def as_json(self, metric: str) -> dict[str, Any]:
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "train": {"loss": self.train_losses},
            "validation": {"loss": self.validation_losses, metric: self.scores},
        }
        return line | ({"warnings": self.warnings} if self.warnings else {})


@dataclass(frozen=True)
class Note:
    """A message for the user, before a run starts or where it goes wrong."""

    text: str


@dataclass(frozen=True)
class Start:
    """What a run trains on, after which modules it cuts, and what its exits and its steps cost.

    `costs` are the multiply-adds of the exits, the main network's last; () where that is the only exit. `step_bytes` is
    the memory that a step takes in this process, estimated; None where that is not known.
    """

    facts: Facts
    places: tuple[str, ...]
    costs: tuple[int, ...] = ()
    step_bytes: float | None = None


Event = Progress | Epoch | Note | Start


@dataclass
class Position:
    """The position of the next minibatch in the run, and counts so far.

    `best` is the score of the saved weights, `alarms` are the names of those that have rung.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    samples: int = 0
    best: float | None = None
    alarms: list[str] = field(default_factory=list)
