"""Options that several networks share."""

from __future__ import annotations

from anytime_lct.errors import ModelError


def expect_dropout(name: str, dropout: float) -> None:
    """Raise ModelError unless `dropout` is a fraction of units to drop, at least 0 and below 1."""
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ModelError(f"Expected a dropout from 0 up to below 1 for the network '{name}', got {dropout!r}.")
