"""Cluster memberships explained: deep embedded clustering and questions about it."""
