"""Recipes: trainings that can be run again."""
