"""Training: one group in training, the workers that own groups, the links between them, and the run around it."""

from anytime_lct.training.allocator import keep_freed_memory
from anytime_lct.training.run import Epoch, Progress, device_of, train
from anytime_lct.training.team import Team, join

__all__ = ["Epoch", "Progress", "Team", "device_of", "join", "keep_freed_memory", "train"]
