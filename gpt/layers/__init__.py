"""What a block is made of: norms, positions, attention and its caches, the feed-forward."""
