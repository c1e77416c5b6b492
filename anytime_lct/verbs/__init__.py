"""What the command line does, for Python: each verb reads and writes the same files, and returns what came of it."""

from anytime_lct.verbs.analyze import analyze
from anytime_lct.verbs.export import export
from anytime_lct.verbs.thresholds import thresholds
from anytime_lct.verbs.train import train

__all__ = ["analyze", "export", "thresholds", "train"]
