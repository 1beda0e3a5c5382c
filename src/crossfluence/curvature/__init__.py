"""Products with the curvature of the risk: what a solver inverts."""
