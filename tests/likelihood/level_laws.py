"""Gaussian mixtures cut into levels, and what every estimator promises of them, from densities alone.

Nothing here asks a denoiser. p_s is the density of x + eps / sqrt(s), a mixture for every signal-to-noise ratio s, and

    KL_s(x) = KL(N(x, I / s) || p_s) = -D/2 log(2 pi e / s) - E_eps log p_s(x + eps / sqrt(s)),

a Gauss-Hermite sum. An exact denoiser has E|x - x_hat|^2 = 2 d KL_s / ds at every x (I-MMSE, arXiv 2302.03792), so the
variational bound's integral between the path's ends s_0 < s_1 is KL_{s_1} - KL_{s_0}, and that of a sampler's steps is
made of 2 d KL_s / ds at their noise levels. Means over a bin are Gauss-Legendre sums, those over levels enumerations.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from diffusion.denoisers.exact import Gaussian, GaussianMixture
from diffusion.likelihood import Dequantizer

LOG_2_PI = math.log(2.0 * math.pi)
_BLOCK = 2**22


@dataclass(frozen=True, eq=False)
class Law:
    """sum_k weights_k N(means_k, diag(stds_k^2)): weights (K,), means (K, D), stds (K, D), float64."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    @property
    def dims(self) -> int:
        return self.means.shape[1]

    def model(self, schedule):
        """The exact denoiser: a Gaussian of one component, or a mixture of isotropic ones."""
        if len(self.weights) == 1:
            return Gaussian(self.means[0], self.stds[0], schedule)
        return GaussianMixture(self.means, self.stds[:, 0], schedule, self.weights)

    def log_density(self, x: Tensor, variance: float | Tensor = 0.0) -> Tensor:
        """log p of data with noise of this variance in them: x (..., D) -> (...)."""
        total = self.stds.square() + variance
        terms = (x[..., None, :] - self.means).square() / total + total.log() + LOG_2_PI
        return (self.weights.log() - 0.5 * terms.sum(-1)).logsumexp(-1)

    def bins(self, levels: int, variance: float = 0.0, open_ends: bool = False) -> Tensor:
        """The probability of every vector of levels, shape (levels^D,); open ends hold what lies outside [-1, 1]."""
        edges = torch.linspace(-1.0, 1.0, levels + 1, dtype=torch.float64)
        if open_ends:
            edges[0], edges[-1] = -math.inf, math.inf
        std = (self.stds.square() + variance).sqrt()
        below = (edges - self.means[..., None]) / std[..., None]
        above = torch.special.ndtr(-below)  # towards the upper tail differences of these keep their digits
        mass = torch.where(below[..., :-1] > 0, -above.diff(), torch.special.ndtr(below).diff())
        return self._over_vectors(mass)

    def decoded(self, levels: int, s: float) -> Tensor:
        """The probability of every vector under p_s and the normalised Gaussian decoder of variance 1 / s."""
        std = (self.stds.square() + 1.0 / s).sqrt()
        z = torch.linspace(-9.0, 9.0, 4001, dtype=torch.float64)
        points = self.means[..., None] + std[..., None] * z  # (K, D, Z)
        weights = (-0.5 * z.square()).softmax(0)
        return self._over_vectors(torch.einsum("z,kdzl->kdl", weights, decoder(points, levels, s)))

    def _over_vectors(self, mass: Tensor) -> Tensor:
        """sum_k w_k of the products over dimensions of `mass` (K, D, L), in the order of `all_vectors`."""
        joint = self.weights[:, None]
        for column in mass.unbind(1):
            joint = (joint[:, :, None] * column[:, None, :]).flatten(1)
        return joint.sum(0)

    def negative_entropy(self, variance: float = 0.0) -> float:
        """E log p, the mean log-density of data with noise of this variance in them."""
        z, weights = _hermite(48, self.dims)
        points = self.means[:, None] + (self.stds.square() + variance).sqrt()[:, None] * z
        return float((self.weights[:, None] * weights * self.log_density(points, variance)).sum())

    def kl(self, x: Tensor, s: float | Tensor, order: int) -> Tensor:
        """KL_s at x (B, D), s () or (B,), by a Gauss-Hermite sum of `order` points a dimension."""
        z, weights = _hermite(order, self.dims)
        s = torch.as_tensor(s, dtype=torch.float64).expand(len(x))
        rows = max(1, _BLOCK // (len(z) * self.means.numel()))  # blocks, so that the tables stay small
        parts = [
            self.log_density(some[:, None] + z / at[:, None, None].sqrt(), 1.0 / at[:, None, None, None]) @ weights
            for some, at in zip(x.split(rows), s.split(rows), strict=True)
        ]
        return -0.5 * self.dims * (LOG_2_PI + 1.0 - s.log()) - torch.cat(parts)

    def square_error(self, x: Tensor, s: Tensor, order: int = 20) -> Tensor:
        """E|x - x_hat|^2 at the signal-to-noise ratio s, by 2 d KL_s / ds: shape (B,)."""
        each = s.expand(len(x)).clone().requires_grad_()
        return 2.0 * torch.autograd.grad(self.kl(x, each, order).sum(), each)[0]

    def elbo(self, schedule, x: Tensor, s: float | None = None, order: int = 8) -> Tensor:
        """The continuous bound of the log-density at x (B, D), with the Gaussian decoder at s (the path's own end)."""
        low, high = _ends(schedule)
        high = high if s is None else s
        decoder_entropy = 0.5 * self.dims * (LOG_2_PI + 1.0 - math.log(high))
        return self.kl(x, low, order) - self.kl(x, high, order) - prior_kl(schedule, x) - decoder_entropy

    def elbo_discrete(self, schedule, x: Tensor, times: Tensor, variance: str = "lower") -> Tensor:
        """The bound of the ancestral sampler at `times` (increasing), with the Gaussian decoder at the least."""
        s_all = schedule.log_snr(times).exp()
        _, sigma = schedule(times)
        total = -prior_kl(schedule, x) - 0.5 * self.dims * (LOG_2_PI + 1.0 - float(s_all[0].log()))
        for i in range(len(times) - 1):
            kl = 0.5 * (s_all[i] - s_all[i + 1]) * self.square_error(x, s_all[i + 1])
            if variance == "upper":  # beta in place of beta sigma_s^2 / sigma_t^2 (variance-preserving paths)
                ratio = float((sigma[i] / sigma[i + 1]).square())
                kl = ratio * kl + 0.5 * self.dims * (ratio - 1.0 - math.log(ratio))
            total = total - kl
        return total


def bin_mean(function, images: Tensor, levels: int, order: int) -> Tensor:
    """E_u function(x + u) + D log w over the bins of `images` (B, D), by a Gauss-Legendre sum."""
    dims = images.shape[1]
    u, weights = np.polynomial.legendre.leggauss(order)
    u, weights = _product(torch.from_numpy((u + 1.0) / 2.0), torch.from_numpy(weights / 2.0), dims)
    points = (images[:, None].double() + u) * (2.0 / levels) - 1.0
    return function(points.flatten(0, 1)).unflatten(0, points.shape[:2]) @ weights + dims * math.log(2.0 / levels)


def decoder(x: Tensor, levels: int, s: float) -> Tensor:
    """p(level | x), proportional to N(centre; x, 1 / s): (..., L)."""
    centres = (2.0 * torch.arange(levels, dtype=torch.float64) + 1.0) / levels - 1.0
    return (-0.5 * s * (centres - x[..., None]).square()).softmax(-1)


def reconstruction(images: Tensor, levels: int, s: float) -> Tensor:
    """E log p(level | centre + eps / sqrt(s)), summed over the dimensions of `images` (B, D)."""
    eps = torch.linspace(-9.0, 9.0, 401, dtype=torch.float64)
    weights = (-0.5 * eps.square()).softmax(0)
    x = (2.0 * torch.arange(levels, dtype=torch.float64) + 1.0) / levels - 1.0
    own = torch.stack([decoder(one + eps / s**0.5, levels, s)[:, k].log() @ weights for k, one in enumerate(x)])
    return own[images.long()].sum(1)


def prior_kl(schedule, x: Tensor) -> Tensor:
    """KL(q(x_1 | x) || N(0, prior_std^2 I)) by torch."""
    alpha, sigma = schedule(torch.tensor(schedule.t_max, dtype=torch.float64))
    prior = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), schedule.prior_std)
    return torch.distributions.kl_divergence(torch.distributions.Normal(alpha * x, sigma), prior).sum(1)


def all_vectors(levels: int, dims: int) -> Tensor:
    """Every vector of levels, uint8 (levels^dims, dims), the last dimension fastest."""
    grids = torch.meshgrid(*[torch.arange(levels)] * dims, indexing="ij")
    return torch.stack([grid.flatten() for grid in grids], dim=1).to(torch.uint8)


def place(images: Tensor, levels: int) -> Tensor:
    """The row of `all_vectors` of each image (B, D)."""
    powers = levels ** torch.arange(images.shape[1] - 1, -1, -1)
    return (images.long() * powers).sum(1)


def centres(images: Tensor, levels: int) -> Tensor:
    return Dequantizer(levels).center(images, torch.float64)


def _ends(schedule) -> tuple[float, float]:
    low, high = schedule.log_snr(torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)).exp().tolist()
    return low, high


@cache
def _hermite(order: int, dims: int) -> tuple[Tensor, Tensor]:
    """Points (Q, D) and weights (Q,) of E over N(0, I)."""
    z, weights = np.polynomial.hermite_e.hermegauss(order)
    return _product(torch.from_numpy(z), torch.from_numpy(weights / weights.sum()), dims)


def _product(points: Tensor, weights: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    if dims == 1:
        return points[:, None], weights
    return torch.cartesian_prod(*[points] * dims), torch.cartesian_prod(*[weights] * dims).prod(1)
