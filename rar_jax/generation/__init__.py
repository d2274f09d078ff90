"""Generates images with a trained model: the Python API, sampling jobs, animations, and the search for options."""
