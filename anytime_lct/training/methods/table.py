"""Training methods by name: local critic training, and what users would take instead on the same recipe and data."""

from __future__ import annotations

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.recipe import PIPELINES, MethodName
from anytime_lct.training.methods.admm import ADMM
from anytime_lct.training.methods.backprop import Backprop
from anytime_lct.training.methods.dni import DNI
from anytime_lct.training.methods.joint import Joint
from anytime_lct.training.methods.pipeline import Pipeline
from anytime_lct.training.methods.posthoc import PostHoc

METHODS = {
    "bp": Backprop,
    "alone": Backprop,
    "joint": Joint,
    "posthoc": PostHoc,
    "dni": DNI,
    "admm": ADMM,
    "gpipe": Pipeline,
    "1f1b": Pipeline,
}
IN_ONE_PROCESS = {"alone", "joint", "posthoc", "dni", "admm"}


def expect_processes(method: MethodName, workers: int, replicas: int) -> None:
    """Raise RecipeError where a method cannot run in so many processes."""
    if method in IN_ONE_PROCESS and (workers, replicas) != (1, 1):
        raise RecipeError(
            f"Expected one process with method {method}, got {workers} workers and {replicas} replicas; leave "
            f"--workers and --replicas out."
        )
    if method == "bp" and workers > 1:
        raise RecipeError(
            f"Expected one worker with method bp, which has no layer groups to share, got {workers}; use --replicas "
            f"(DistributedDataParallel), or --method gpipe or 1f1b."
        )
    if method in PIPELINES and (workers < 2 or replicas > 1):
        raise RecipeError(
            f"Expected at least 2 workers and one replica with method {method}, got {workers} and {replicas}; set "
            f"--workers, or use --method bp."
        )
