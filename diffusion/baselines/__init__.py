"""The models that diffusion is measured against: the variational and the entropic autoencoder, and their parts."""

from . import entropy

__all__ = ["entropy"]
