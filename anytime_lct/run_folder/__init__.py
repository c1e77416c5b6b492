"""The run folder: what a training run leaves behind, and what starts from it."""
