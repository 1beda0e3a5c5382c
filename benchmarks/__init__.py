"""Measured figures: each module is a script, `python -m benchmarks.FOLDER.NAME` from the root of the repository."""
