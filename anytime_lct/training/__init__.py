"""Training: one group in training, the worker that owns groups, and the run around it."""

from anytime_lct.training.run import Epoch, Progress, train

__all__ = ["Epoch", "Progress", "train"]
