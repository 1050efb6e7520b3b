"""The commands of `python -m diffusion`."""
