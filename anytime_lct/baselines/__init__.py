"""What users would take instead of local critic training, on the same recipe, data and network."""

from anytime_lct.baselines.backprop import Backprop
from anytime_lct.baselines.pipeline import Pipeline
from anytime_lct.errors import RecipeError
from anytime_lct.recipe import PIPELINES, MethodName

METHODS = {"bp": Backprop, "gpipe": Pipeline, "1f1b": Pipeline}

__all__ = ["METHODS", "Backprop", "Pipeline", "expect_processes"]


def expect_processes(method: MethodName, workers: int, replicas: int) -> None:
    """Raise RecipeError where a method cannot run in so many processes."""
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
