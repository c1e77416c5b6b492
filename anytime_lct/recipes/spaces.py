"""The keys that a sweep varies, each with its values, as text.

KEY=log:LOW..HIGH    a number, its logarithm evenly drawn
KEY=LOW..HIGH        a whole number where both are, else a number; lin:LOW..HIGH is always a number
KEY=A|B|C            one of these values, each as --set takes it
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.reading import assignment

RANGE = re.compile(r"(?:(?P<scale>log|lin):)?(?P<low>[^.|]*(?:\.\d[^.|]*)?)\.\.(?P<high>[^|]+)")
WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Space:
    """The values of one key: numbers from `low` to `high`, or `choices`, the texts of its values."""

    key: str
    kind: Literal["log", "linear", "whole", "choice"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def value(self, drawn: Any) -> Any:
        """Return what the recipe gets for a drawn number, or for the text of a choice."""
        return assignment(f"{self.key}={drawn}")[1] if self.kind == "choice" else drawn


def read_space(text: str) -> Space:
    """Read a key and its values; raises RecipeError.

    >>> read_space("critics.lr=log:1e-4..1e-1").kind, read_space("cut.groups=2..4").kind
    ('log', 'whole')
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise _not_a_space(text)
    match = RANGE.fullmatch(values)
    if match is None:
        choices = tuple(dict.fromkeys(part.strip() for part in values.split("|")))
        if len(choices) < 2 or not all(choices) or ".." in values:
            raise _not_a_space(text)
        return Space(key, "choice", choices=choices)
    scale, low, high = match["scale"], match["low"].strip(), match["high"].strip()
    try:
        bounds = (float(low), float(high))
    except ValueError:
        raise _not_a_space(text) from None
    if not bounds[0] < bounds[1] or not all(map(math.isfinite, bounds)) or (scale == "log" and bounds[0] <= 0):
        above = " above 0" if scale == "log" else ""
        raise RecipeError(
            f"Expected two numbers{above}, the smaller one first, got '{values}' for {key}; correct them."
        )
    if scale is None and WHOLE.fullmatch(low) and WHOLE.fullmatch(high):
        return Space(key, "whole", *bounds)
    return Space(key, "log" if scale == "log" else "linear", *bounds)


def _not_a_space(text: str) -> RecipeError:
    return RecipeError(
        f"Expected a key with its values, like critics.lr=log:1e-4..1e-1, cut.groups=2..4 or critic.kind=slim|paper, "
        f"got '{text}'."
    )
