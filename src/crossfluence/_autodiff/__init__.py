"""Modules as functions of their parameters, and derivatives of such functions."""
