"""Runs side by side: ``python -m gpt.compare``."""

from gpt.compare.comparison import PAGE, Comparison, compare, render, report

__all__ = ["PAGE", "Comparison", "compare", "render", "report"]
