"""The stochasticity of the reverse SDE: eta as a number or a profile over log-SNR, and the exact part of every step.

With lambda the log-SNR, increasing from noise to data, the reverse SDE with eta (`samplers.sde.sde`) is, on any path,

    d(x / sigma) = [ -eta^2/2 (x / sigma) + (1 + eta^2)/2 (alpha / sigma) x_hat ] d lambda + eta dW_lambda

so that, exactly, with the *clock* u and the decay variable K of the data part,

    x_s = (sigma_s / sigma_t) rho x_t + alpha_s integral of exp(-(K_s - K)) x_hat dK + sigma_s sqrt(1 - rho^2) z
    du = eta^2 d lambda,    K = (lambda + u) / 2,    rho = exp(-(u_s - u_t) / 2)

(DPM-Solver++, arXiv 2211.01095, prop. 4.1 and app. B.4; SA-Solver, arXiv 2309.05019, prop. 4.2). Solvers differ in the
polynomial that approximates x_hat under the integral. A step over which eta changes uses its mean square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...denoisers.given import real_number
from ...errors import UserError
from ...numerics.brownian import GridNoise
from ...numerics.random import Noise
from ...schedules import Schedule
from ..sampler import NoiseFunction, Sampler, WithSteps, check_fields, times_of


@dataclass(frozen=True)
class NoiseProfile:
    """eta over log-SNR, piecewise constant: etas[i] between edges[i - 1] and edges[i].

    Args:
        etas: The values, each 0 or more.
        edges: The log-SNRs where they change, increasing, one fewer than values.

    Raises:
        UserError: For invalid values or edges.
    """

    etas: tuple[float, ...]
    edges: tuple[float, ...] = ()

    def __post_init__(self):
        for eta in self.etas:
            if not 0.0 <= eta < math.inf:
                raise UserError(f"eta: found {eta}; must be 0 or more")
        if len(self.edges) != len(self.etas) - 1 or not all(low < high for low, high in pairwise(self.edges)):
            raise UserError(
                f"eta: found the edges {self.edges} for {len(self.etas)} values; needs one fewer, increasing"
            )

    @classmethod
    def of(cls, eta: float | str | NoiseProfile) -> NoiseProfile:
        """A profile from a number, from text (`1@-3:5`: 1 for log-SNRs from -3 to 5, else 0), or unchanged."""
        if isinstance(eta, NoiseProfile):
            return eta
        if not isinstance(eta, str):
            return cls((real_number("eta", eta),))
        value, _, interval = eta.partition("@")
        try:
            low, high = map(float, interval.split(":"))
            within = float(value)
        except ValueError:
            raise UserError(f"eta: found '{eta}'; accepted: a number, or ETA@LOW:HIGH, e.g. 1@-3:5") from None
        return cls((0.0, within, 0.0), (low, high))

    def at(self, log_snr: Tensor) -> Tensor:
        """eta at these log-SNRs."""
        edges = torch.tensor(self.edges, dtype=log_snr.dtype)
        return torch.tensor(self.etas, dtype=log_snr.dtype)[torch.bucketize(log_snr, edges)]

    def clock(self, log_snr: Tensor) -> Tensor:
        """The integral of eta^2 from 0 to these log-SNRs."""
        ends = (-math.inf, *self.edges, math.inf)
        total = torch.zeros_like(log_snr)
        for eta, (low, high) in zip(self.etas, pairwise(ends), strict=True):
            total += eta**2 * (log_snr.clamp(low, high) - min(max(0.0, low), high))
        return total


@dataclass(frozen=True)
class EtaSteps:
    """The coefficients of steps from t to s, float64 of their shape.

    Args:
        h: The increase of log-SNR, lambda_s - lambda_t.
        decay: K_s - K_t.
        keep: The factor of x_t.
        fresh: The standard deviation of the fresh noise.
        rho: The factor by which the remaining earlier noise, in units of sigma, decays.
    """

    h: Tensor
    decay: Tensor
    keep: Tensor
    fresh: Tensor
    rho: Tensor


@dataclass(frozen=True)
class EtaSampler(WithSteps, Sampler):
    """A sampler of the reverse SDE; its noise follows a Brownian path that is the same for every grid.

    Args:
        eta: The stochasticity: a number >= 0, a `NoiseProfile`, or text for one (`1@-3:5`: 1 for log-SNRs from -3 to
        5).
    """

    eta: float | str | NoiseProfile = 1.0

    def __post_init__(self):
        check_fields(self)
        NoiseProfile.of(self.eta)  # raises for invalid values

    @property
    def profile(self) -> NoiseProfile:
        """eta as a function of log-SNR."""
        return NoiseProfile.of(self.eta)

    @property
    def is_stochastic(self) -> bool:
        return any(self.profile.etas)

    def noise_along(self, noise: Noise, schedule: Schedule, grid: Tensor) -> NoiseFunction:
        """The noise along a Brownian path, divided into the steps of the grid."""
        times = self.drawing_times(schedule, grid)
        if not self.is_stochastic or len(times) < 2:  # one evaluation, x = E[x | x_t], draws nothing
            return noise
        return GridNoise.along(noise, self.profile.clock(schedule.log_snr(times)))

    def drawing_times(self, schedule: Schedule, grid: Tensor) -> Tensor:
        """The times between which noise is drawn: those of the grid, unless a step draws more than once."""
        return times_of(schedule, grid)

    def linear_part(self, schedule: Schedule, t: Tensor, s: Tensor) -> EtaSteps:
        """The linear part and the noise of the steps from `t` to `s`, which are exact in every solver."""
        log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(s)
        u = self.profile.clock(log_snr_s) - self.profile.clock(log_snr_t)
        rho, sigma_s = torch.exp(-0.5 * u), schedule(s)[1]
        h = log_snr_s - log_snr_t
        return EtaSteps(h, 0.5 * (h + u), rho * sigma_s / schedule(t)[1], sigma_s * torch.sqrt(-torch.expm1(-u)), rho)
