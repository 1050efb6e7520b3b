"""The reverse SDE with a noise dial (Song et al. 2021, arXiv 2011.13456; `diffusion.sde` has the derivation).

dx = [ f x - (1 + eta^2)/2 g^2 score ] dt + eta g dw,    eta = 0: the probability-flow ODE, eta = 1: the reverse SDE
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..schedules import Schedule
from ..sde import diffusion_squared, drift
from .sampler import Coefficients, LinearSampler


@dataclass(frozen=True)
class _ReverseSDE(LinearSampler):
    """What both discretisations share: the dial.

    Args:
        eta: The noise dial, any value >= 0.
    """

    eta: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.eta < float("inf"):
            raise UserError(f"eta: found {self.eta}; must be 0 or more")

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients: ...


@dataclass(frozen=True)
class ExponentialSDE(_ReverseSDE):
    """The step that is exact where x_hat does not change: it contracts the noise exactly, at any step size and eta.

        x_s = alpha_s x_hat + sigma_s (rho (x_t - alpha_t x_hat) / sigma_t + sqrt(1 - rho^2) z)
        rho = exp(-eta^2 (lambda_s - lambda_t) / 2)

    eta = 0 is DDIM with eta 0, eta = 1 is ancestral sampling with the lower variance. The deviation of the state never
    exceeds the path's, where Euler-Maruyama's blows up with eta^2 times the step.

    Args:
        eta: The noise dial, any value >= 0.
    """

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        log_rho = -0.5 * self.eta**2 * (schedule.log_snr(s) - schedule.log_snr(t))
        kept = torch.exp(log_rho) * sigma_s / sigma_t
        return Coefficients(kept, alpha_s - kept * alpha_t, sigma_s * torch.sqrt(-torch.expm1(2.0 * log_rho)))


@dataclass(frozen=True)
class EulerMaruyama(_ReverseSDE):
    """Euler-Maruyama in the schedule's time: the textbook step, stable only where (1 + eta^2) g^2 dt << sigma^2.

    Args:
        eta: The noise dial, any value >= 0.
    """

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        alpha, sigma = schedule(t)
        g2 = diffusion_squared(schedule, t)
        pull = 0.5 * (1.0 + self.eta**2) * g2 / sigma**2  # -score's weight: score = (alpha x_hat - x_t) / sigma^2
        dt = s - t
        return Coefficients(1.0 + dt * (drift(schedule, t) + pull), -dt * pull * alpha, self.eta * torch.sqrt(-dt * g2))
