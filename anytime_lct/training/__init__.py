"""Training: the run and what a minibatch does on its way through the layer groups."""
