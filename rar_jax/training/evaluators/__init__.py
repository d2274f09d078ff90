"""Evaluations during a run: held-out losses, sample grids, scores of samples and the report on the digits."""
