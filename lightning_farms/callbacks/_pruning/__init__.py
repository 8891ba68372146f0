"""What the callback that prunes has besides its hooks."""
