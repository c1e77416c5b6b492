"""The toolkit's errors: each message is one sentence that says what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class LCTError(Exception):
    """Any error that the toolkit raises on purpose; the command line prints it and exits with `exit_code`."""

    exit_code = 2

    def as_dict(self) -> dict[str, Any]:
        """Return the error as plain values, as `--json` prints it."""
        return {"error": str(self), "exit_code": self.exit_code}


class BudgetError(LCTError, ValueError):
    """A budget, or the text of one, is not a usable number."""


class ProfileError(LCTError, ValueError):
    """A profile.json is missing, unreadable or contradicts itself."""


class NothingFitsError(LCTError, LookupError):
    """No sub-model meets the budget; `nearest` are the alternatives, each with its exit, cost and quality."""

    exit_code = 3

    def __init__(self, message: str = "", nearest: Sequence[dict[str, float]] = ()) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "exit": None, "nearest": list(self.nearest)}


class BundleError(LCTError, ValueError):
    """An exported folder is missing, incomplete or altered."""


class RecipeError(LCTError, ValueError):
    """A training recipe holds an unknown key or a value out of range."""


class DataError(LCTError, ValueError):
    """A data set is missing or not what its name promises."""


class ModelError(LCTError, ValueError):
    """A network's name or option is unknown or does not suit the data."""


class PartitionError(LCTError, ValueError):
    """A network cannot be cut in the requested way."""


class CriticError(LCTError, ValueError):
    """A local critic's name or option is unknown or does not suit the tensor that crosses the cut."""


class DivergenceError(LCTError, ArithmeticError):
    """A loss is no longer finite; the message names the group and the step."""


class CheckpointError(LCTError, ValueError):
    """A run folder or checkpoint is missing, damaged or belongs to another run."""


class AnalysisError(LCTError, ValueError):
    """A network could not be measured, for example because it does not run on one sample."""


class CountWarning(UserWarning):
    """Operators of a network have no count of multiply-adds, so that its costs are too low."""


class ExportError(LCTError, RuntimeError):
    """A sub-model could not be exported, or its ONNX graph does not agree with torch."""


class ProviderError(LCTError, RuntimeError):
    """An execution provider is not there, or its answers are not those of the bundle."""


class InputError(LCTError, ValueError):
    """The input of a request has the wrong shape, type or values."""


class UnreadableError(DataError, InputError):
    """A file is not the image or the text that it should be, in training or as the input of a request."""


class WorkerLostError(LCTError, RuntimeError):
    """Another process of the run is lost, or at another step; `peer` is its rank where that is known."""

    exit_code = 4

    def __init__(self, message: str = "", peer: int | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class StoppedError(LCTError, RuntimeError):
    """A long command was interrupted and kept what it had done."""

    exit_code = 130
