"""Models, losses, timing and result files that several benchmarks share."""
