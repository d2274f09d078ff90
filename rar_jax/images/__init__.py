"""Pictures: grids, the ADM .npz format, and plots."""
