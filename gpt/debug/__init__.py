"""Diagnosis of a run that is slow or goes wrong."""
