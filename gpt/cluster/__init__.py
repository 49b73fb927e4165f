"""Where the ranks of a run are started."""
