"""Recipes: every value of a training run, read, completed and checked; needs no torch."""
