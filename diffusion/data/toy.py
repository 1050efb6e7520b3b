"""Distributions with exact densities, in the plane and of signals and volumes: data sets whose likelihood is known.

All have mean 0 and mean variance 1 per coordinate. The curves (moons, rings, spiral) are not "a curve plus noise" but
fine mixtures of Gaussians along it, sum_k w_k N(mu_k, s^2 I), so that the density is exact by definition. The signals
and volumes are autoregressive along each side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from ..config import TOY_SETS, imported
from ..errors import choose
from ..numerics.random import STREAM_TOY, normal, uniform

_BLOCK = 2**22  # entries of the (points, components) table in memory at once


class Toy(ABC):
    """A distribution with a known density.

    Attributes:
        shape: The shape of one sample; (2,) in the plane.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def draw(self, n: int, seed: int = 0) -> Float32[Tensor, " n *shape"]:
        """Draw `n` samples; sample i depends on (seed, i) alone, so that a longer draw begins with the shorter one."""

    @abstractmethod
    def log_prob(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n"]:
        """Return the log density in nats at the data `x`, (N, *shape), in their dtype; computed in float64."""


class PlanarToy(Toy):
    """A distribution in the plane."""

    shape: ClassVar[tuple[int, ...]] = (2,)  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class MixtureToy(PlanarToy):
    """Mixture of isotropic Gaussians, p(x) = sum_k weights_k N(x; means_k, stds_k^2 I).

    Args:
        means: Shape (K, 2).
        stds: Shape (K,).
        weights: Shape (K,), positive, summing to one.
    """

    means: Float64[Tensor, " k 2"]
    stds: Float64[Tensor, " k"]
    weights: Float64[Tensor, " k"]

    def draw(self, n: int, seed: int = 0) -> Float32[Tensor, " n 2"]:
        """Draw `n` points: a component by its weight, then the point."""
        indices = torch.arange(n)
        u = uniform(seed, indices, 0, stream=STREAM_TOY, dtype=torch.float64)
        # Rounding may leave the last cumulative weight just below one.
        component = torch.searchsorted(self.weights.cumsum(0), u).clamp_(max=len(self.weights) - 1)
        z = normal(seed, indices, 1, (2,), stream=STREAM_TOY, dtype=torch.float64)
        return (self.means[component] + self.stds[component, None] * z).float()

    def log_prob(self, x: Float[Tensor, " n 2"]) -> Float[Tensor, " n"]:
        """Return the log density in nats at `x`, shape (N, 2)."""
        means, stds, weights = (field.to(x.device) for field in (self.means, self.stds, self.weights))
        log_scale = weights.log() - 2 * stds.log() - math.log(2 * math.pi)
        blocks = [
            torch.logsumexp(log_scale - (block[:, None] - means).square().sum(-1) / (2 * stds**2), dim=1)
            for block in x.double().split(max(1, _BLOCK // len(means)))
        ]
        return torch.cat(blocks).to(x.dtype)


@dataclass(frozen=True)
class Checkerboard(PlanarToy):
    """Uniform on the 8 dark squares of a 4 x 4 board that spans [-half_width, half_width]^2.

    Each coordinate alone is uniform, so its variance is half_width^2 / 3.
    """

    half_width: float = math.sqrt(3)

    def draw(self, n: int, seed: int = 0) -> Float32[Tensor, " n 2"]:
        """Draw `n` points: a dark square, then a place in it."""
        indices = torch.arange(n)
        square = (8 * uniform(seed, indices, 0, stream=STREAM_TOY, dtype=torch.float64)).long()
        column = square // 2
        row = 2 * (square % 2) + column % 2
        # Rounding to float32 must not carry a point over the border, where the density is zero.
        place = uniform(seed, indices, 1, (2,), stream=STREAM_TOY, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        corner = torch.stack((column, row), dim=1)
        return (self.half_width * ((corner + place) / 2 - 1)).float()

    def log_prob(self, x: Float[Tensor, " n 2"]) -> Float[Tensor, " n"]:
        """Return the log density in nats at `x`, shape (N, 2): -log(2 half_width^2) on dark squares, else -inf."""
        cell = torch.floor(2 * (x.double() / self.half_width + 1))
        inside = ((cell >= 0) & (cell < 4)).all(dim=1) & (cell.sum(dim=1) % 2 == 0)
        log_density = -math.log(2 * self.half_width**2)
        return torch.full_like(x[:, 0], log_density).masked_fill(~inside, -torch.inf)


@dataclass(frozen=True)
class AutoregressiveToy(Toy):
    """A stationary Gaussian process of order one, AR(1), along each side: of signals (C, L), volumes (C, D, H, W), ...

    Along a side, x_1 = z_1 and x_k = a x_{k-1} + sqrt(1 - a^2) z_k with z of N(0, 1). Each coordinate has variance 1,
    and two of one channel that are (k, l, ...) apart have the covariance a^(|k| + |l| + ...); channels are independent.

    Args:
        shape: The shape (C, *sides) of one sample.
        a: The correlation of neighbours, between -1 and 1.
    """

    shape: tuple[int, ...]
    a: float

    def draw(self, n: int, seed: int = 0) -> Float32[Tensor, " n *shape"]:
        """Draw `n` data: normals, then the recursion along each side."""
        x = normal(seed, torch.arange(n), 0, self.shape, stream=STREAM_TOY, dtype=torch.float64)
        for axis in range(2, x.ndim):
            steps = list(x.unbind(axis))
            for k in range(1, len(steps)):
                steps[k] = self.a * steps[k - 1] + math.sqrt(1 - self.a**2) * steps[k]
            x = torch.stack(steps, axis)
        return x.float()

    def log_prob(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n"]:
        """Return the log density in nats at `x`, shape (N, *shape): that of z, which the recursion gives back."""
        z, count, log_det = x.double(), math.prod(self.shape), 0.0
        for axis in range(2, z.ndim):
            length = z.shape[axis]
            first, rest = z.narrow(axis, 0, 1), z.narrow(axis, 1, length - 1)
            gaps = (rest - self.a * z.narrow(axis, 0, length - 1)) / math.sqrt(1 - self.a**2)
            z = torch.cat((first, gaps), axis)
            log_det += 0.5 * math.log(1 - self.a**2) * (length - 1) * count / length
        log_prob = -0.5 * z.square().flatten(1).sum(1) - 0.5 * count * math.log(2 * math.pi) - log_det
        return log_prob.to(x.dtype)


def _standardised(means: Tensor, std: float) -> MixtureToy:
    """Equal weights and one std, moved and scaled to mean 0 and mean variance 1 per coordinate."""
    means = means - means.mean(dim=0)
    scale = 1 / math.sqrt(means.square().mean().item() + std**2)
    k = len(means)
    stds = torch.full((k,), scale * std, dtype=torch.float64)
    return MixtureToy(scale * means, stds, torch.full((k,), 1 / k, dtype=torch.float64))


def _circle(radius: float, start: float, stop: float, count: int) -> Tensor:
    """`count` points at the middles of equal arcs from angle `start` to `stop`."""
    angle = start + (stop - start) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return radius * torch.stack((angle.cos(), angle.sin()), dim=1)


def gaussians() -> MixtureToy:
    """Eight Gaussians on a circle."""
    return _standardised(_circle(1.0, -math.pi / 8, 2 * math.pi - math.pi / 8, 8), 0.1)


def moons() -> MixtureToy:
    """Two half circles that reach into each other."""
    upper = _circle(1.0, 0.0, math.pi, 100)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
    return _standardised(torch.cat((upper, lower)), 0.1)


def rings() -> MixtureToy:
    """Three concentric rings, of equal density along the line."""
    return _standardised(torch.cat([_circle(float(j), 0.0, 2 * math.pi, 80 * j) for j in (1, 2, 3)]), 0.12)


def spiral() -> MixtureToy:
    """The Swiss roll: an Archimedean spiral of one and a half turns, of equal density along the line."""
    # Arc length of r = angle: (angle sqrt(1 + angle^2) + asinh(angle)) / 2, inverted on a fine table.
    table = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 100_001, dtype=torch.float64)
    length = (table * (1 + table**2).sqrt() + table.asinh()) / 2
    wanted = length[0] + (length[-1] - length[0]) * (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    angle = table[torch.searchsorted(length, wanted)]
    return _standardised(angle[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1), 0.6)


def ar1() -> AutoregressiveToy:
    """Signals of 64 values, in which neighbours have the correlation 0.9."""
    return AutoregressiveToy((1, 64), 0.9)


def ar1_volume() -> AutoregressiveToy:
    """Volumes of 8 x 8 x 8 values, in which neighbours have the correlation 0.7."""
    return AutoregressiveToy((1, 8, 8, 8), 0.7)


def toy_names() -> list[str]:
    """Return the names that `load_toy` takes."""
    return list(TOY_SETS)


def find_toy(name: str) -> Toy | None:
    """The distribution that a data set is drawn from; None where it is none."""
    return load_toy(name) if name in TOY_SETS else None


def load_toy(name: str) -> Toy:
    """Return the distribution called `name`.

    Raises:
        UserError: For an unknown name.
    """
    return imported(TOY_SETS[choose("data.name", name, TOY_SETS)])()
