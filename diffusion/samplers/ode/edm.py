"""EDM's samplers (Karras et al. 2022, arXiv 2206.00364): Euler and Heun in sigma, with or without churn.

In y = x / alpha and rho = sigma / alpha every path is EDM's, and the probability-flow ODE is dy / d rho = eps_hat
(eq. 1, 3). Algorithms 1 and 2 are written for it, and so work with every schedule.

Churn (Algorithm 2) is noise added before a step, which then starts from a higher noise level:

    rho^ = (1 + gamma) rho,    y^ = y + sqrt(rho^^2 - rho^2) S_noise z
    gamma = min(S_churn / N, sqrt(2) - 1) where S_min <= rho <= S_max, else 0

N counts the evaluated times of the grid: the intervals, if the grid ends at clean data. Two steps that Algorithm 2
churns are not churned here: one from the noisy end of the path, which has no higher noise level; and the last, to clean
data.

Heun's method evaluates at the end of the step, at the Euler state, and divides by the noise level there. With few steps
that state is far off, and on data with modes narrower than a step the samples diverge: use `dpm-solver++2m` or `unipc`
below about 20 steps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UserError
from ...schedules import Schedule
from ..sampler import check_fields
from .coordinates import SIGMA, Nodes, Variables
from .multistep import Row, Stage, StagedSampler

_LARGEST_GAMMA = math.sqrt(2.0) - 1.0


@dataclass(frozen=True)
class _Churned(StagedSampler):
    """Common to Euler and Heun: the variables and the churn. Fields as `Heun`."""

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = float("inf")
    s_noise: float = 1.0
    variables: ClassVar[Variables] = SIGMA

    def __post_init__(self):
        check_fields(self)
        for name in ("s_churn", "s_min", "s_noise"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name}: found {getattr(self, name)}; must be 0 or more")
        if not self.s_min <= self.s_max:
            raise UserError(f"s_min, s_max: found {self.s_min}, {self.s_max}; needs s_min <= s_max")

    @property
    def is_stochastic(self) -> bool:
        return self.s_churn > 0

    @abstractmethod
    def stages(self, t: int, s: int) -> list[Stage]:
        """The stages of a step from node t to node s."""

    def churned(self, schedule: Schedule, times: Tensor) -> Nodes:
        """The nodes from which the steps start after noise is added."""
        nodes = Nodes.at_times(schedule, times)[:-1]
        rho = nodes.sigma / nodes.alpha
        gamma = min(self.s_churn / len(times), _LARGEST_GAMMA)
        rise = math.log1p(gamma) * ((rho >= self.s_min) & (rho <= self.s_max)).to(rho.dtype)
        noisiest = Nodes.at_times(schedule, torch.tensor(schedule.t_max, dtype=torch.float64))
        h = torch.maximum(nodes.h - rise, noisiest.h)
        higher = Nodes.at_half_log_snrs(schedule, h)
        same = h >= nodes.h  # exactly the grid's times where no noise is added
        pairs = zip(vars(nodes).values(), vars(higher).values(), strict=True)
        return Nodes(*(torch.where(same, own, raised) for own, raised in pairs))

    def plan(self, schedule: Schedule, times: Tensor) -> tuple[Nodes, list[Stage]]:
        steps = len(times) - 1
        if not self.is_stochastic:
            return Nodes.at_times(schedule, times), [stage for i in range(steps) for stage in self.stages(i, i + 1)]
        nodes = Nodes.at_times(schedule, times) + self.churned(schedule, times)
        return nodes, [stage for i in range(steps) for stage in self.stages(steps + 1 + i, i + 1)]

    def rows(self, schedule: Schedule, times: Tensor) -> list[Row]:
        rows = super().rows(schedule, times)
        if not self.is_stochastic:
            return rows
        before, after = Nodes.at_times(schedule, times)[:-1], self.churned(schedule, times)
        factor = after.alpha / before.alpha
        deviation = self.s_noise * torch.sqrt((after.sigma**2 - (factor * before.sigma) ** 2).clamp(min=0.0))
        assert self.evaluations_per_step is not None
        for i, pair in enumerate(zip(factor.tolist(), deviation.tolist(), strict=True)):
            if after.t[i] > before.t[i]:
                first = i * self.evaluations_per_step
                rows[first] = replace(rows[first], renoise=pair)
        return rows


@dataclass(frozen=True)
class Euler(_Churned):
    """Euler's method in (x / alpha, sigma / alpha), with EDM's churn; without churn it is DDIM with eta 0.

    One evaluation per step. Arguments as `Heun`.
    """

    order: ClassVar[int] = 1

    def stages(self, t: int, s: int) -> list[Stage]:
        return [Stage(t, t, s, (t,))]


@dataclass(frozen=True)
class Heun(_Churned):
    """EDM's second-order sampler (Algorithms 1 and 2): the trapezoidal rule in (x / alpha, sigma / alpha).

        y'  = y + (rho_s - rho_t) eps_hat(y, rho_t)
        y_s = y + (rho_s - rho_t) (eps_hat(y, rho_t) + eps_hat(y', rho_s)) / 2

    Two evaluations per step; the last step, to clean data, is an Euler step.

    Args:
        s_churn: S_churn, the sum of gamma over the steps of a grid if all were churned and none capped: about the total
            by which log(sigma / alpha) is raised. 0 for none, which is Algorithm 1. It saturates at (sqrt(2) - 1) N for
            N steps.
        s_min: The smallest sigma / alpha at which noise is added.
        s_max: The largest.
        s_noise: Multiplies the standard deviation of the added noise.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2

    def stages(self, t: int, s: int) -> list[Stage]:
        return [Stage(t, t, s, (t,), lands=False), Stage(s, t, s, (s, t))]
