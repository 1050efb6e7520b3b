"""Metrics as they come: a file of lines, and W&B."""
