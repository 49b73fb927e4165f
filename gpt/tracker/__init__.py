"""Logs, plots and the record of a run, and its lines on the terminal."""
