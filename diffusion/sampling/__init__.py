"""Sampling: one call, grids of times tuned to a model, samplers fitted to it, encoding of images."""
