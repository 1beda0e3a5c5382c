"""Scores from a trained model or from its training, and what they cost."""
