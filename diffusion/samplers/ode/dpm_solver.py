"""DPM-Solver (Lu et al. 2022, arXiv 2206.00927): single-step methods of two and three evaluations, in noise variables.

With h = log(alpha / sigma), the paper's lambda, and H = h_s - h_t, prop. 3.1:

    x_s = (alpha_s / alpha_t) x_t - alpha_s * integral of e^-h eps_hat dh from h_t to h_s

DPM-Solver-1, with eps_hat constant, is DDIM with eta 0. The other two also evaluate inside the step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...schedules import Schedule
from .coordinates import NOISE, Nodes, Variables
from .multistep import Stage, StagedSampler


class _SingleStep(StagedSampler):
    """A Runge-Kutta-like step: stages at fixed fractions of the step in h."""

    variables: ClassVar[Variables] = NOISE

    @property
    def evaluations_per_step(self) -> int:
        return self.order

    @property
    @abstractmethod
    def fractions(self) -> tuple[float, ...]:
        """Where in the step the denoiser is evaluated, besides its start."""

    @abstractmethod
    def stages(self, t: int, s: int, inner: list[int]) -> list[Stage]:
        """The stages of a step from node t to node s, with the inner nodes at `fractions`."""

    def plan(self, schedule: Schedule, times: Tensor) -> tuple[Nodes, list[Stage]]:
        nodes, steps = Nodes.at_times(schedule, times), len(times) - 1
        fractions = torch.tensor(self.fractions, dtype=torch.float64)
        inner = nodes.h[:-1, None] + nodes.h.diff()[:, None] * fractions
        stages = []
        for i in range(steps):
            first = steps + 1 + i * len(fractions)
            stages += self.stages(i, i + 1, list(range(first, first + len(fractions))))
        return nodes + Nodes.at_half_log_snrs(schedule, inner.flatten()), stages


@dataclass(frozen=True)
class DPMSolver2(_SingleStep):
    """DPM-Solver-2 (Algorithm 1, r_1 = 1/2): the midpoint in h. Two evaluations per step.

    u   = (alpha_m / alpha_t) x_t - sigma_m (e^(H/2) - 1) eps_hat(x_t, t),    h_m = h_t + H / 2
    x_s = (alpha_s / alpha_t) x_t - sigma_s (e^H - 1) eps_hat(u, m)
    """

    order: ClassVar[int] = 2
    fractions: ClassVar[tuple[float, ...]] = (0.5,)

    def stages(self, t: int, s: int, inner: list[int]) -> list[Stage]:
        (m,) = inner
        return [Stage(t, t, m, (t,), lands=False), Stage(m, t, s, (m,))]


@dataclass(frozen=True)
class DPMSolver3(_SingleStep):
    """DPM-Solver-3 (Algorithm 2, r_1 = 1/3, r_2 = 2/3). Three evaluations per step.

    The state at r_1 comes from DPM-Solver-1, that at r_2 from the straight line through eps_hat at 0 and r_1, and x_s
    from the straight line through eps_hat at 0 and r_2.
    """

    order: ClassVar[int] = 3
    fractions: ClassVar[tuple[float, ...]] = (1.0 / 3.0, 2.0 / 3.0)

    def stages(self, t: int, s: int, inner: list[int]) -> list[Stage]:
        one, two = inner
        return [
            Stage(t, t, one, (t,), lands=False),
            Stage(one, t, two, (one, t), lands=False),
            Stage(two, t, s, (two, t)),
        ]
