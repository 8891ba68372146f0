"""Helper of the callback that prunes."""
