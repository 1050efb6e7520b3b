"""DDIM (Song, Meng, Ermon 2021, arXiv 2010.02502): a family of processes without, or with less, fresh noise.

Given x all of them have the marginals of the path (lemma 1). With E[x | x_t] in place of x, as here, the law of the
samples is correct only in the limit of short steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..schedules import Schedule
from ..schedules.forward_process import posterior
from .sampler import Coefficients, LinearSampler, WithSteps, check_fields


@dataclass(frozen=True)
class DDIM(WithSteps, LinearSampler):
    """x_s = alpha_s x_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,  c = eta times the posterior deviation (eq. 12, 16).

    eta = 0 is Euler's method for the probability-flow ODE in the variables x / alpha and sigma / alpha; eta = 1 is
    ancestral sampling with the lower variance.

    Args:
        eta: Multiplies the standard deviation of the fresh noise; from 0 to 1.
    """

    eta: float = 0.0

    def __post_init__(self):
        check_fields(self)
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta: found {self.eta}; DDIM takes 0 to 1 (sampler 'sde' takes any eta >= 0)")

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        fresh = self.eta * torch.sqrt(posterior(schedule, t, s).variance.clamp(min=0.0))  # 0 towards noise
        kept = torch.sqrt(sigma_s**2 - fresh**2) / sigma_t  # the factor of x_t - alpha_t x_hat
        return Coefficients(kept, alpha_s - kept * alpha_t, fresh)
