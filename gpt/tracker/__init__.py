"""What a run leaves behind and says meanwhile."""
