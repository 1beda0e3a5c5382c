"""Acting on an answer: each verb returns a new model and says what was predicted and what happened."""
