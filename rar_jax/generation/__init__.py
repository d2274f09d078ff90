"""Generators, jobs of many images, and animations."""
