"""Networks: maps of (x, noise level, class label) to a tensor of the shape of x. They know nothing about diffusion."""

from .adm import ADM
from .classifier import NoisyImageClassifier
from .dit import DiT
from .mlp import MLP
from .song_unet import SongUNet
from .unet import UNet

__all__ = ["ADM", "MLP", "DiT", "NoisyImageClassifier", "SongUNet", "UNet"]
