"""Ready-made questions."""
