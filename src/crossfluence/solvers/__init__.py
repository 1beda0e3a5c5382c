"""Solvers: what `J⁻¹` means, one algorithm in each file."""
