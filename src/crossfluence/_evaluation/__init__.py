"""Ground truth by training again, and agreement with it."""
