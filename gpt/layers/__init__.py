"""What a model is made of: norms, positions, attention and its caches, the feed-forward, the head with its loss."""
