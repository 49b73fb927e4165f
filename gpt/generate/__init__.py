"""Text from a model: ``python -m gpt.generate``, the samples of a run, and ``generate`` in a notebook."""
