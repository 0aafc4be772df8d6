"""Training: the loop, its engine and its schedule."""
