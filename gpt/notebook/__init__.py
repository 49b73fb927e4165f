"""Runs, models and token files as objects for a notebook; ``import gpt`` offers them."""
