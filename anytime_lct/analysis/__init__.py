"""Analysis: what the parts of a trained network cost and what its exits are worth."""

from anytime_lct.analysis.measure import profile
from anytime_lct.analysis.picture import draw

__all__ = ["draw", "profile"]
