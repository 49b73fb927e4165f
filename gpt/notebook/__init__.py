"""Runs, models and token files as objects for a notebook; their face is the package ``gpt`` itself."""
