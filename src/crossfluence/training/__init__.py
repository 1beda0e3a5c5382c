"""Training that can be run again: recipes, retraining, the ground truth."""
