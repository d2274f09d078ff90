"""Randomized Autoregressive visual generation (RAR) in JAX."""
