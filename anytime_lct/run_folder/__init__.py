"""The run folder: the files that a training run writes, and the weights it starts from."""
