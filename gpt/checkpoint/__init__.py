"""Checkpoints: written whole or not at all, never changed, and read without unpickling anything."""
