"""Reproducible experiments: what the command line runs and the README quotes."""
