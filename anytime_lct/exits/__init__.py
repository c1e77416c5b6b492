"""Exits: what they cost and are worth, budgets, the choice among them, and the exported bundle; needs no torch."""
