"""Studies of language models: a real one, planted bias, a board of estimators, contrastive texts, mitigation."""
