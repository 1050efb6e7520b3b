"""Where things are on the disk."""
