"""The verbs of the command line for Python: each reads and writes the same files, and returns its result."""

from anytime_lct.run_folder.own import save
from anytime_lct.verbs.analyze import analyze
from anytime_lct.verbs.export import export
from anytime_lct.verbs.reference import reference
from anytime_lct.verbs.sweep import sweep
from anytime_lct.verbs.thresholds import thresholds
from anytime_lct.verbs.train import train

__all__ = ["analyze", "export", "reference", "save", "sweep", "thresholds", "train"]
