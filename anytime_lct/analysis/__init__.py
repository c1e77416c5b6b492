"""Analysis: the cost and the quality of a trained network's exits."""
