"""Image files, grids, animations and plots."""
