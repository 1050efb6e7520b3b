"""Ancestral sampling: DDPM read as Bayes' rule on the path (Ho et al. 2020, arXiv 2006.11239).

A step draws from q(x_s | x_t, x) with x_hat = E[x | x_t] in place of x. The variance of p(x_s | x_t) is not known
exactly. It is at least the posterior variance (`lower`: right where the datum is known). Its value for data N(0, I)
(`upper`: beta_t on a variance-preserving path) bounds its mean over x_t and coordinates for data whose coordinates
have a variance of at most 1 (sec. 3.2 of the paper); at a single x_t, and for wider data, it can be larger. The best
single number follows from the mean square of the denoiser's answers (`analytic`: see `analytic_variance`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, choose
from ..schedules import Schedule
from ..schedules.forward_process import posterior, variance_for_unit_data
from .analytic_variance import Moments
from .sampler import Coefficients, LinearSampler, WithSteps, check_fields

VARIANCES = ("lower", "upper", "analytic")


@dataclass(frozen=True)
class Ancestral(WithSteps, LinearSampler):
    """x_s ~ q(x_s | x_t, x_hat).

    Args:
        variance: `lower` (the posterior variance), `upper` (the variance for data N(0, I)) or `analytic` (the optimal
            one; exact, at any number of steps, for data N(m, c^2 I), but not where directions have unlike variances).
        moments: What `analytic` needs (`estimate_moments`); a trained model estimates its own.
    """

    variance: str = "lower"
    moments: Moments | None = None

    def __post_init__(self):
        check_fields(self)
        choose("variance", self.variance, VARIANCES)
        if self.moments is not None and self.variance != "analytic":
            raise UserError(f"moments: given with variance '{self.variance}'; only 'analytic' takes them")

    @property
    def is_stochastic(self) -> bool:
        return True

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        q = posterior(schedule, t, s)
        if self.variance == "upper":
            variance = variance_for_unit_data(schedule, t, s)
        elif self.variance == "lower":
            variance = q.variance
        elif self.moments is None:
            raise UserError("moments: variance 'analytic' needs those of the denoiser (samplers.estimate_moments)")
        else:
            variance = q.variance + q.from_x**2 * self.moments.denoising_error(schedule, t)
        return Coefficients(q.from_x_t, q.from_x, torch.sqrt(variance))
