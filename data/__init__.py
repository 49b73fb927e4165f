"""From text to token files. One module per kind of source."""
