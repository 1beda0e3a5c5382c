"""Sizes from what training did, in the place of a damping."""
