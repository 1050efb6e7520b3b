"""The commands of `python -m diffusion`: `evaluate` measures runs, `compare` puts what was measured in one table."""
