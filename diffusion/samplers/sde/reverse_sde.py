"""The reverse SDE with any stochasticity eta (Song et al. 2021, arXiv 2011.13456; derived in `samplers.sde.sde`).

dx = [ f x - (1 + eta^2)/2 g^2 score ] dt + eta g dw,    eta = 0: the probability-flow ODE, eta = 1: the reverse SDE
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from ...schedules import Schedule
from ..sampler import Coefficients, LinearSampler, RowSampler, remembered
from .sde import diffusion_squared, drift
from .stochasticity import EtaSampler


@dataclass(frozen=True)
class ExponentialSDE(EtaSampler, RowSampler):
    """The step that is exact for constant x_hat: it contracts the noise exactly, at any step size and eta.

        x_s = (sigma_s / sigma_t) rho x_t + alpha_s (1 - exp(-k)) D + sigma_s sqrt(1 - rho^2) z
        rho = exp(-eta^2 (lambda_s - lambda_t) / 2),    k = (1 + eta^2) (lambda_s - lambda_t) / 2

    Order 1: D = x_hat; eta = 0 is DDIM with eta 0, eta = 1 ancestral sampling with the lower variance. The standard
    deviation of the state never exceeds that of the path, whereas Euler-Maruyama's grows with eta^2 times the step.

    Order 2: D = x_hat + r/2 (x_hat - the previous one), r the ratio of this step to the previous in log-SNR. This is
    SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, eq. 18 and app. B.4) for any eta; eta = 0 is
    DPM-Solver++(2M). Also one evaluation per step; the first step is of order 1. On data N(m, 0.4^2) the standard
    deviation after 10 steps with eta = 2 is 0.90 to 1.0 of the true one, with order 1 it is 0.54 to 0.58.

    Args:
        eta: The stochasticity, any value >= 0, or a profile over log-SNR (`NoiseProfile`).
        order: 1 or 2.
    """

    order: int = 2  # type: ignore[reportIncompatibleMethodOverride]  # a declared fact that is also a setting

    def __post_init__(self):
        super().__post_init__()
        if self.order not in (1, 2):
            raise UserError(f"order: found {self.order}; accepted: 1 or 2")

    def rows(self, schedule: Schedule, times: Tensor) -> list[tuple[Tensor, float, float, float, float, float]]:
        """(t, s, factor of x_t, of x_hat, of minus the previous one, of the noise) of each step."""
        t, s = times[:-1], times[1:]
        steps = self.linear_part(schedule, t, s)
        weight = -schedule(s)[0] * torch.expm1(-steps.decay)
        share = torch.zeros_like(weight)  # the weight of the difference between the last two x_hat
        if self.order == 2:
            share[1:] = 0.5 * weight[1:] * steps.h[1:] / steps.h[:-1]
        numbers = (value.tolist() for value in (s, steps.keep, weight + share, share, steps.fresh))
        return list(zip(t.unbind(), *numbers, strict=True))

    def integrate(self, denoiser, x, times, noise, cond, callback):
        last = None
        for step, (t, s, a, b, b_last, c) in enumerate(remembered(self, denoiser.schedule, times)):
            x_hat = denoiser(x, t, cond)
            x = torch.add(a * x, x_hat, alpha=b)
            if last is not None:
                x = x.sub_(last, alpha=b_last)
            if c != 0.0:
                assert noise is not None  # `sample` has seen to it
                x = x.add_(noise(step), alpha=c)
            last = x_hat if self.order == 2 else None
            if callback is not None:
                callback(step, s, x, x_hat)
        return x


@dataclass(frozen=True)
class EulerMaruyama(EtaSampler, LinearSampler):
    """Euler-Maruyama in the schedule's time: the textbook step, stable only where (1 + eta^2) g^2 dt << sigma^2.

    Args:
        eta: The stochasticity, any value >= 0, or a profile over log-SNR (`NoiseProfile`).
    """

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        alpha, sigma = schedule(t)
        g2, eta = diffusion_squared(schedule, t), self.profile.at(schedule.log_snr(t))
        pull = 0.5 * (1.0 + eta**2) * g2 / sigma**2  # -score's weight: score = (alpha x_hat - x_t) / sigma^2
        dt = s - t
        return Coefficients(1.0 + dt * (drift(schedule, t) + pull), -dt * pull * alpha, eta * torch.sqrt(-dt * g2))
