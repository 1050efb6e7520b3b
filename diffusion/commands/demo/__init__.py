"""`demo`: a page on this machine to play with models."""
