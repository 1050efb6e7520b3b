"""Small models for tests of what a GPU is given to do (`pretended_device`)."""

import torch

from diffusion.denoisers import NetworkDenoiser
from diffusion.networks import UNet
from diffusion.schedules import Cosine

SHAPE, LEVELS = (1, 4, 4), 17


class Scaling(torch.nn.Module):
    """A network of one operation."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x, level, labels=None):
        return self.scale * x


class Classifier(torch.nn.Module):
    """Three classes of noisy images of `SHAPE`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.dense = torch.nn.Linear(16, 3)

    def forward(self, x, level):
        return self.dense(x.flatten(1)) * level[:, None].exp()


def unet(classes=0):
    """A U-Net whose output depends on all that is in it."""
    torch.manual_seed(0)
    network = UNet(1, 8, (1,), blocks=1, attention=(), dropout=0.0, num_classes=classes, image_size=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def make(network=None, schedule=None, classes=0):
    """A denoiser, on the CPU; the same each time."""
    return NetworkDenoiser(network or unet(classes), schedule or Cosine(), "v", SHAPE, num_classes=classes).eval()
