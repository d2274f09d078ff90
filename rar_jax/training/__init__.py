"""Training: the step, its state and optimizer, and the loop around them."""
