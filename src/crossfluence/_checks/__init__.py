"""First evaluations of a loss and of a question: deterministic, differentiable, each sample's own."""
