"""The act of sampling: one call, grids of times chosen for a model, samplers fitted to it, images encoded."""
