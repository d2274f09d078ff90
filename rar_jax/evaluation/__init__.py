"""Scoring images: statistics of features, and what the digits allow besides."""
