"""The config of a run: its keys, their checks, loading and saving."""
