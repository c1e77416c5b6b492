"""Analysis: what a trained network's exits cost and are worth."""
