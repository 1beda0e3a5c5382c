"""Other libraries: one adapter for all of them."""
