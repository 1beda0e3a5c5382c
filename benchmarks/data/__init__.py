"""Readers of public data sets, from the folder $CROSSFLUENCE_DATA."""
