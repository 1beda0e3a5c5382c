"""Samples' gradients kept on disk in a compact code, for questions that need the data no more."""
