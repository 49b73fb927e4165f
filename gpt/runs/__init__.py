"""All runs and sweeps below a directory: ``python -m gpt.runs``, and the run that ``resume=last`` continues."""
