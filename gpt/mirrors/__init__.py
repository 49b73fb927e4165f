"""Copies of a run's logs elsewhere."""
