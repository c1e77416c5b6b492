"""What the sub-models of a trained network cost and are worth: operations, quality, time."""
