"""Sampling: guidance, choosing a token from logits, and the decode loop."""
