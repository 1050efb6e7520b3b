"""Probabilistic PCA (Tipping & Bishop 1999): a latent-variable model with all in closed form."""

import math

import torch
from torch import Tensor

from diffusion.baselines.latent_variable import LatentVariableModel
from diffusion.numerics import random

LOG_NORMAL = 0.5 * math.log(2.0 * math.pi)


class LinearGaussian(LatentVariableModel):
    """x = W z + b + s eps, z ~ N(0, I): x ~ N(b, W W' + s^2 I), z | x ~ N(S W' (x - b) / s^2, S), S^-1 = I + W'W/s^2.

    W has orthogonal columns, so that S is diagonal and the exact posterior is a proposal of the model's kind.

    Args:
        dims, latent_dim: The lengths of x and z.
        shift: Added to the exact posterior mean, in posterior standard deviations.
        stretch: Multiplies the exact posterior standard deviation.
    """

    def __init__(self, dims=8, latent_dim=3, shift=0.0, stretch=1.0, noise=0.5, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        basis, _ = torch.linalg.qr(torch.randn(dims, latent_dim, generator=generator, dtype=torch.float64))
        weight = basis * torch.linspace(0.5, 2.0, latent_dim, dtype=torch.float64)
        self.weight = torch.nn.Buffer(weight.to(dtype))
        self.bias = torch.nn.Buffer(torch.randn(dims, generator=generator, dtype=torch.float64).to(dtype))
        self.latent_dim, self.levels, self.noise = latent_dim, None, noise
        self.shift, self.stretch = shift, stretch

    def posterior(self, x):
        variance = 1.0 / (1.0 + self.weight.square().sum(0) / self.noise**2)
        return variance * ((x - self.bias) @ self.weight) / self.noise**2, variance.sqrt().expand(len(x), -1)

    def proposal(self, x):
        mean, std = self.posterior(x)
        return mean + self.shift * std, self.stretch * std

    def log_prob_given(self, x, z):
        mean = z @ self.weight.T + self.bias
        return (-0.5 * ((x - mean) / self.noise).square() - LOG_NORMAL - math.log(self.noise)).sum(1)

    def draw_given(self, z, seed, indices):
        eps = random.normal(seed, indices, 0, (len(self.bias),), random.STREAM_TOY, self.dtype)
        return z @ self.weight.T + self.bias + self.noise * eps

    @property
    def protocol(self):
        return {"model": "linear Gaussian", "latent_dim": self.latent_dim}

    def log_prob(self, x) -> Tensor:
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(len(self.bias), dtype=self.dtype)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x).double()

    def draw(self, n, seed=0):
        z = random.normal(seed, torch.arange(n), 1, (self.latent_dim,), random.STREAM_TOY, self.dtype)
        return self.draw_given(z, seed, torch.arange(n))

    def kl_to_posterior(self):
        """KL(q(z | x) || p(z | x)), the same for all x."""
        c = self.stretch**2
        return 0.5 * self.latent_dim * (c + self.shift**2 - 1.0 - torch.tensor(c).log().item())
