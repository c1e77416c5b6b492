"""Training: one group in training, the workers that own groups, the links between them, and the run around it."""

from anytime_lct.training.allocator import keep_freed_memory
from anytime_lct.training.run import Epoch, Note, Progress, device_of, train
from anytime_lct.training.team import Team, join
from anytime_lct.training.tracking import expect_one_process

__all__ = ["Epoch", "Note", "Progress", "Team", "device_of", "expect_one_process", "join", "keep_freed_memory", "train"]
