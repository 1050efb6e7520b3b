"""Networks: maps of (x, noise level, class label) to a tensor of the shape of x. They know nothing about diffusion."""

from .classifier import NoisyImageClassifier
from .dit import DiT
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "DiT", "NoisyImageClassifier", "UNet"]
