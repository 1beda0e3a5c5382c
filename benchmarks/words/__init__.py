"""Word vectors: predicted beside retrained changes of bias."""
