"""Networks: maps of (x, noise level, class label) to a tensor of the shape of x. They know nothing of diffusion."""

from diffusion.networks.classifier import NoisyImageClassifier
from diffusion.networks.dit import DiT
from diffusion.networks.mlp import MLP
from diffusion.networks.unet import UNet

__all__ = ["MLP", "DiT", "NoisyImageClassifier", "UNet"]
