"""Ancestral sampling: DDPM read as Bayes' rule on the path (Ho et al. 2020, arXiv 2006.11239).

A step draws from q(x_s | x_t, x) with x_hat = E[x | x_t] in place of x. The variance of p(x_s | x_t) is not known
exactly; it lies between the posterior variance (`lower`: right where the datum is known) and its value for data N(0, I)
(`upper`: beta_t on a variance-preserving path). Sec. 3.2 of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import choose
from ..schedules import Schedule
from ..schedules.forward_process import posterior, variance_for_unit_data
from .sampler import Coefficients, LinearSampler

VARIANCES = ("lower", "upper")


@dataclass(frozen=True)
class Ancestral(LinearSampler):
    """x_s ~ q(x_s | x_t, x_hat).

    Args:
        variance: `lower` (the posterior variance) or `upper` (the variance for data N(0, I)).
    """

    variance: str = "lower"

    def __post_init__(self):
        choose("variance", self.variance, VARIANCES)

    @property
    def is_stochastic(self) -> bool:
        return True

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        q = posterior(schedule, t, s)
        variance = q.variance if self.variance == "lower" else variance_for_unit_data(schedule, t, s)
        return Coefficients(q.from_x_t, q.from_x, torch.sqrt(variance))
