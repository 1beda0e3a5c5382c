"""Solves with a damped curvature."""
