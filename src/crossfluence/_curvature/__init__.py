"""Curvature matrices of the risk, never formed."""
