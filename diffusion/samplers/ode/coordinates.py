"""The variables in which a solver integrates the probability-flow ODE, and the weights of its steps.

With h = log(alpha / sigma) (half the log-SNR; the lambda of DPM-Solver) the ODE has no linear part, on any path:

    data        d(x / sigma) = e^h x_hat dh                  DPM-Solver++ (arXiv 2211.01095, prop. 4.1), UniPC
    noise       d(x / alpha) = -e^-h eps_hat dh              DPM-Solver (arXiv 2206.00927, prop. 3.1), DEIS
    sigma       d(x / alpha) = eps_hat d rho                 EDM (arXiv 2206.00364, eq. 1), rho = sigma / alpha = e^-h
    velocity    d(x / r) = v_hat / r dphi                    `samplers.ode.flow`, r = sqrt((alpha k)^2 + sigma^2),
                                                             tan phi = sigma / (alpha k), v_hat of the path of x / k

Each has the form d(x / c) = w(u) m du: the linear part is solved exactly, and an output m of the denoiser remains under
the integral. A solver interpolates the outputs that it has by a polynomial, and integrates it:

    x_s = (c_s / c_t) x_t + sum_j b_j m_j,        b_j = c_s * integral of w(u) L_j(u) du from u_t to u_s

with Lagrange polynomials L_j. The b_j are the phi functions of the papers in a form without cancellation: computed by
Gauss-Legendre quadrature, exact to rounding for any spacing of the nodes and any step in use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...schedules import Schedule

_QUADRATURE_POINTS = 20  # 1e-14 for steps of 20 in h, longer than any path


@dataclass(frozen=True)
class Nodes:
    """Points of a path, as float64 tensors of one shape: h is half the log-SNR."""

    t: Tensor
    h: Tensor
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def at_times(cls, schedule: Schedule, t: Tensor) -> Nodes:
        """The points at the times `t`."""
        return cls(t, 0.5 * schedule.log_snr(t), *schedule(t))

    @classmethod
    def at_half_log_snrs(cls, schedule: Schedule, h: Tensor) -> Nodes:
        """The points where half the log-SNR is `h`."""
        t = schedule.inverse_log_snr(2.0 * h)
        return cls(t, h, *schedule(t))

    def __getitem__(self, index: Any) -> Nodes:
        return Nodes(self.t[index], self.h[index], self.alpha[index], self.sigma[index])

    def take(self, index: Tensor) -> Nodes:
        """The nodes with these indices, of the shape of `index`."""
        return Nodes(self.t.take(index), self.h.take(index), self.alpha.take(index), self.sigma.take(index))

    def __add__(self, other: Nodes) -> Nodes:
        """The concatenation of both."""
        pairs = ((self.t, other.t), (self.h, other.h), (self.alpha, other.alpha), (self.sigma, other.sigma))
        return Nodes(*(torch.cat(pair) for pair in pairs))


class Variables(ABC):
    """d(x / c) = w(u) m du, with m = factor (x_hat - from_x x_t). Methods act elementwise."""

    @abstractmethod
    def coordinate(self, at: Nodes) -> Tensor:
        """u."""

    @abstractmethod
    def scale(self, at: Nodes) -> Tensor:
        """c."""

    @abstractmethod
    def kernel(self, u: Tensor, end: Nodes) -> Tensor:
        """c_s w(u) for a step that ends at s, in a form that does not overflow."""

    @abstractmethod
    def output(self, at: Nodes) -> tuple[Tensor, Tensor]:
        """(factor, from_x) of m."""


class Data(Variables):
    """m = x_hat."""

    def coordinate(self, at: Nodes) -> Tensor:
        return at.h

    def scale(self, at: Nodes) -> Tensor:
        return at.sigma

    def kernel(self, u: Tensor, end: Nodes) -> Tensor:
        return end.alpha * torch.exp(u - end.h)

    def output(self, at: Nodes) -> tuple[Tensor, Tensor]:
        return torch.ones_like(at.h), torch.zeros_like(at.h)


class Noise(Variables):
    """m = eps_hat, smooth in h."""

    def coordinate(self, at: Nodes) -> Tensor:
        return at.h

    def scale(self, at: Nodes) -> Tensor:
        return at.alpha

    def kernel(self, u: Tensor, end: Nodes) -> Tensor:
        return -end.sigma * torch.exp(end.h - u)

    def output(self, at: Nodes) -> tuple[Tensor, Tensor]:
        return -at.alpha / at.sigma, 1.0 / at.alpha


class Sigma(Noise):
    """m = eps_hat, smooth in rho = sigma / alpha."""

    def coordinate(self, at: Nodes) -> Tensor:
        return at.sigma / at.alpha

    def kernel(self, u: Tensor, end: Nodes) -> Tensor:
        return end.alpha.expand_as(u)


@dataclass(frozen=True)
class Velocity(Variables):
    """m = v_hat / r, smooth in phi.

    Args:
        data_std: k, the unit in which x is measured against eps; 1 is `samplers.ode.flow`'s.
    """

    data_std: float = 1.0

    def coordinate(self, at: Nodes) -> Tensor:
        return torch.atan2(at.sigma, at.alpha * self.data_std)

    def scale(self, at: Nodes) -> Tensor:
        return torch.hypot(at.alpha * self.data_std, at.sigma)

    def kernel(self, u: Tensor, end: Nodes) -> Tensor:
        return self.scale(end).expand_as(u)

    def output(self, at: Nodes) -> tuple[Tensor, Tensor]:
        r = self.scale(at)
        return -r / (self.data_std * at.sigma), at.alpha * self.data_std**2 / r**2


DATA, NOISE, SIGMA = Data(), Noise(), Sigma()


def step_weights(variables: Variables, t: Nodes, s: Nodes, using: Nodes) -> Tensor:
    """b_j of the steps from `t` to `s` (rows,), from outputs at the nodes `using` (rows, k): shape (rows, k)."""
    u_t, u_s = variables.coordinate(t), variables.coordinate(s)
    points, gauss = gauss_legendre(_QUADRATURE_POINTS)
    u = u_t[:, None] + (u_s - u_t)[:, None] * points
    mass = variables.kernel(u, s[:, None]) * (u_s - u_t)[:, None] * gauss
    return (lagrange(variables.coordinate(using), u) * mass[:, None]).sum(-1)


def lagrange(nodes: Tensor, u: Tensor) -> Tensor:
    """The Lagrange polynomials of `nodes` (rows, k) at the points `u` (rows, q): shape (rows, k, q)."""
    k = nodes.shape[1]
    if k == 1:
        return torch.ones(len(nodes), 1, u.shape[1], dtype=u.dtype)
    # Factor i of polynomial j is (u - u_i) / (u_j - u_i), omitted for i = j.
    factors = (u[:, None] - nodes[:, :, None])[:, None] / (nodes[:, :, None] - nodes[:, None])[..., None]
    return factors.masked_fill_(torch.eye(k, dtype=torch.bool)[..., None], 1.0).prod(2)


@lru_cache
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Points and weights on [0, 1]: the eigenvalues of Legendre's Jacobi matrix (Golub and Welsch 1969)."""
    i = torch.arange(1, n, dtype=torch.float64)
    off = i / torch.sqrt(4.0 * i**2 - 1.0)
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return 0.5 * (points + 1.0), vectors[0] ** 2
