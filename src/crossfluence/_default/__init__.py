"""The library's choice of solver: at the end of a training, and of one that was stopped before it."""
