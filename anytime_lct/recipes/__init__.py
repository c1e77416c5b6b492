"""Recipes: what a training run is asked to do, read, completed and checked; needs no torch."""
