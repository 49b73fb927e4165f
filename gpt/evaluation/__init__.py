"""Measurements of a model: one file per task, behind the interface in :mod:`gpt.evaluation.task`."""
