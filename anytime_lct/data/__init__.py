"""Data sets by name, as minibatches that follow from the seed alone."""
