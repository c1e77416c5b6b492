"""Training: the run, its loop over minibatches, the training methods and the processes."""
