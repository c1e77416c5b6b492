"""Exits: their costs and qualities, budgets, the choice among them, and the exported bundle; needs no torch."""
