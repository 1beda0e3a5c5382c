"""Batches that come back in the same order."""
