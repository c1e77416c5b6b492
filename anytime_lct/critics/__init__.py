"""Local critics: their kinds, their sizes within a budget, and the cuts behind which they stand."""
