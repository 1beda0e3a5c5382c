"""Scores, agreements and verdicts. Knows no model."""
