"""The baselines that diffusion is compared with: the variational and the entropic autoencoder, and their parts."""

from . import entropy

__all__ = ["entropy"]
