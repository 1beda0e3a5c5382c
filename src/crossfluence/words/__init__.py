"""Word vectors: corpora, skip-gram, and questions about bias and clusters of words."""
