"""SDEdit (Meng et al. 2022, arXiv 2108.01073): noise added to a sample, then removed by any sampler.

    x_t = alpha_t x + sigma_t eps,        then the sampler, from t to the data

Structure coarser than the noise at t is preserved, and finer structure is resampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..schedules import Schedule
from ..schedules.schedule import log_snr_ends
from .ode.probability_flow import ODE
from .sampler import Sampler


def log_snr_of_strength(strength: float) -> float:
    """The log-SNR at which arctan(sigma / alpha) is the fraction `strength` of the way from data to noise.

    1/2 is as much noise as signal, on every path.

    Raises:
        UserError: For a strength that is not above 0 and below 1.
    """
    if not 0.0 < strength < 1.0:
        raise UserError(f"strength: found {strength}; must be above 0 (x itself) and below 1 (another x)")
    return -2.0 * math.log(math.tan(0.5 * math.pi * strength))


@dataclass(frozen=True, eq=False)
class SDEdit(Sampler):
    """A sampler that starts from noisy data: the initial state x_1 is the noise that is added to them.

    Only the part of the grid below the noise level is used, so fewer steps and evaluations.

    Args:
        x: Data, of shape (*shape) or (1 or B, *shape).
        log_snr: The noise level, clamped to the path.
        inner: The sampler that removes the noise.
    """

    x: Float[Tensor, " *bdims"]
    log_snr: float = 0.0
    inner: Sampler = field(default_factory=ODE)

    @property
    def order(self) -> int:
        return self.inner.order

    @property
    def is_stochastic(self) -> bool:
        return self.inner.is_stochastic

    @property
    def is_adaptive(self) -> bool:
        return self.inner.is_adaptive

    @property
    def evaluations_per_step(self) -> int | None:
        return self.inner.evaluations_per_step

    @property
    def starting_evaluations(self) -> int:
        return self.inner.starting_evaluations

    @property
    def default_steps(self) -> int:
        return self.inner.steps or self.inner.default_steps

    @property
    def default_grid(self) -> str:
        return self.inner.default_grid

    def below(self, schedule: Schedule, grid: Tensor) -> Tensor:
        """The part of a grid that is used: from the noise level on."""
        low, high = log_snr_ends(schedule)
        level = torch.tensor(min(max(self.log_snr, low), high), dtype=torch.float64)
        t = schedule.inverse_log_snr(level).clamp(max=schedule.t_max).reshape(1)
        return torch.cat((t, grid[grid < t]))

    def noise_along(self, noise, schedule, grid):
        return self.inner.noise_along(noise, schedule, self.below(schedule, grid))

    def sample(self, denoiser, x_1, grid, noise=None, cond=None, callback=None):
        schedule = denoiser.schedule
        x = self.x.to(x_1)
        if x.shape not in (x_1.shape, x_1.shape[1:], (1, *x_1.shape[1:])):
            raise UserError(f"x: found shape {tuple(x.shape)}; the data have {tuple(x_1.shape[1:])}")
        times = self.below(schedule, grid.detach().to(device="cpu", dtype=torch.float64))
        start = torch.hypot(*schedule(grid[0].clamp(max=schedule.t_max)))
        alpha, sigma = schedule(times[0])
        x_t = float(alpha) * x + float(sigma / start) * x_1
        return self.inner.sample(denoiser, x_t, times, noise, cond, callback)

    def integrate(self, denoiser, x, times, noise, cond, callback):
        return self.inner.integrate(denoiser, x, times, noise, cond, callback)
