"""Sources of text and tokens, one file for each kind."""
