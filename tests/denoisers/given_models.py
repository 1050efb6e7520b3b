"""Small models and data that tests of what users pass have in common."""

from functools import partial

import numpy as np
import torch
from torch import nn

from diffusion import sample
from diffusion.denoisers import NetworkDenoiser, exact
from diffusion.denoisers.inverse_problems import (
    Mask,
    Observation,
)
from diffusion.objectives import Objective, time_distribution, weighting
from diffusion.schedules import VP, Cosine

SHAPE = (1, 8, 8)
draw = partial(sample, sampler="ddim", steps=2)


class Net(nn.Module):
    def __init__(self, wrap=lambda y: y, out=1):
        super().__init__()
        self.c, self.wrap = nn.Conv2d(1, out, 3, padding=1), wrap
        with torch.no_grad():
            for i, value in enumerate(self.parameters()):
                value.copy_(torch.linspace(-0.2, 0.3 + i, value.numel()).reshape(value.shape))

    def forward(self, x, t, labels=None):
        return self.wrap(self.c(x))


class Embedded(nn.Module):
    """Three classes and none, for data in the plane."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(4, 2)
        with torch.no_grad():
            self.e.weight.copy_(torch.arange(8.0).reshape(4, 2))

    def forward(self, x, c, labels=None):
        return x + self.e(labels)


def denoiser(net, **options):
    return NetworkDenoiser(net, Cosine(), prediction="v", shape=SHAPE, **options)


PLANE = exact.Gaussian([0.1, 0.2], np.array([0.5, 0.4]), VP())
LEVELS = exact.Gaussian(torch.zeros(1, 4, 4), 0.5, VP())
X = torch.linspace(-1, 1, 6).reshape(3, 2)
IMAGES = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)


LABELLED = NetworkDenoiser(Net(), Cosine(), prediction="v", shape=SHAPE, num_classes=3)


SEEN = Observation(Mask(torch.tensor([True, False])), torch.zeros(1, 1))


def losses(x=None, u=None, times=None):
    objective = Objective(weighting("elbo", VP()), times or time_distribution("log-snr"))
    u = torch.linspace(0.1, 0.9, 4) if u is None else u
    return objective(PLANE, torch.zeros(4, 2) if x is None else x, u, torch.ones(4, 2))
