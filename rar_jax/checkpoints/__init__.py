"""Weights on disk: Orbax checkpoints of our own, and the published PyTorch files."""
