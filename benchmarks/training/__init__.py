"""Estimators beside training again."""
