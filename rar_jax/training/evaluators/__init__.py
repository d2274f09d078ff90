"""What is evaluated during a run: held-out losses, sample grids, scores of samples and the report of the digits."""
