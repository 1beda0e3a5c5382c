"""EK-FAC: Kronecker-factored curvature, layer by layer."""
