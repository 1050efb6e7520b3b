"""DPM-Solver++ for the reverse SDE, single-step with two evaluations (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UserError
from ...schedules import Schedule
from ..sampler import RowSampler, remembered, times_of
from .stochasticity import EtaSampler


@dataclass(frozen=True)
class DPMSolverSDE(EtaSampler, RowSampler):
    """The single-step solver known as DPM++ SDE: DPM-Solver++(2S) (alg. 1) with the noise of the SDE.

    With m between t and s in log-SNR, lambda_m = lambda_t + midpoint (lambda_s - lambda_t), x_m is an exponential step
    from x_t (`ExponentialSDE` of order 1), x_hat_m = E[x | x_m], and

        D = x_hat_t + (x_hat_m - x_hat_t) / (2 midpoint)
        x_s = (sigma_s / sigma_t) rho x_t + alpha_s (1 - exp(-k)) D + sigma_s N,     N = rho_{m,s} N_{t,m} + N_{m,s}

    where the noise of the whole step is that of its halves, on one path. The multistep variant, SDE-DPM-Solver++(2M),
    is `ExponentialSDE` of order 2.

    Args:
        eta: The stochasticity, any value >= 0, or a profile over log-SNR (`NoiseProfile`).
        midpoint: The position of the second evaluation in the step, between 0 and 1.
    """

    midpoint: float = 0.5
    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.midpoint < 1.0:
            raise UserError(f"midpoint: found {self.midpoint}; must be between 0 and 1")

    def _middles(self, schedule: Schedule, times: Tensor) -> Tensor:
        log_snr = schedule.log_snr(times)
        return schedule.inverse_log_snr(torch.lerp(log_snr[:-1], log_snr[1:], self.midpoint))

    def drawing_times(self, schedule: Schedule, grid: Tensor) -> Tensor:
        times = times_of(schedule, grid)
        return torch.cat((times, self._middles(schedule, times))).sort(descending=True).values

    def rows(self, schedule: Schedule, times: Tensor) -> list[tuple[Any, ...]]:
        """(t, m, s), then the factors (x_t, x_hat, noise) to m, then those (x_t, x_hat, that at m, noises) to s."""
        t, m, s = times[:-1], self._middles(schedule, times), times[1:]
        first, second, whole = (self.linear_part(schedule, *ends) for ends in ((t, m), (m, s), (t, s)))
        weight_m = -schedule(m)[0] * torch.expm1(-first.decay)
        weight_s = -schedule(s)[0] * torch.expm1(-whole.decay)
        carried = schedule(s)[1] * second.rho * first.fresh / schedule(m)[1]  # the first half's noise, at s
        ahead = 0.5 / self.midpoint
        to_m = first.keep, weight_m, first.fresh
        to_s = whole.keep, (1.0 - ahead) * weight_s, ahead * weight_s, carried, second.fresh
        numbers = (value.tolist() for value in (s, *to_m, *to_s))
        return list(zip(t.unbind(), m.unbind(), *numbers, strict=True))

    def integrate(self, denoiser, x, times, noise, cond, callback):
        rows = remembered(self, denoiser.schedule, times)
        for step, (t, m, s, a_m, b_m, c_m, a, b, b_ahead, c_1, c_2) in enumerate(rows):
            x_hat = denoiser(x, t, cond)
            x_m = torch.add(a_m * x, x_hat, alpha=b_m)
            x = torch.add(a * x, x_hat, alpha=b) if b != 0.0 else a * x
            if c_m != 0.0:
                assert noise is not None  # `sample` has seen to it
                z = noise(2 * step)
                x_m, x = x_m.add_(z, alpha=c_m), x.add_(z, alpha=c_1)
            x = x.add_(denoiser(x_m, m, cond), alpha=b_ahead)
            if c_2 != 0.0:
                assert noise is not None
                x = x.add_(noise(2 * step + 1), alpha=c_2)
            if callback is not None:
                callback(step, s, x, x_hat)
        return x
