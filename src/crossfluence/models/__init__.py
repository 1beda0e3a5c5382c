"""Small models of the paper's experiments."""
