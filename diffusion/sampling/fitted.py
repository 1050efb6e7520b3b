"""A multistep solver fitted to a model: its times, its weights, and its last step.

In the velocity variables of `samplers.ode.coordinates`, on its own times, an Adams step with every weight corrected,

    x_{i+1} = (r_{i+1} / r_i) (1 + s_{i+1}) x_i + sum_d (b_id + w_id e_i) m_{i-d},    e_i: the weight of an Euler step

and, after the last evaluation, a linear combination instead of x_hat alone:

    x = x_hat + f_0 (x_n / alpha_n - x_hat) + sum_{d > 0} f_d phi_n m_{n-d}

The first time is also fitted: before it the state is treated as noise, x_0 = (r_0 / r_start) (1 + s_0) x_start, as the
denoiser's output for pure noise, the mean of the data, is not worth one evaluation of five. With all numbers zero, from
the start of the path, it is `Adams` on these times. A solver whose weights differ between steps is non-stationary
(Shaul et al., arXiv 2403.01329); `sampling.fit` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..errors import UserError
from ..samplers.ode.coordinates import Nodes, step_weights
from ..samplers.ode.linear_multistep import Adams
from ..samplers.sampler import Callback, Sampler, check_fields
from ..schedules import Schedule


@dataclass(frozen=True)
class Plan:
    """The coefficients in the loop, as lists over steps.

    Args:
        times: Where the denoiser is evaluated, shape (n,), float64.
        from_x: A stored output is x_hat - from_x x_t; its factor is in the weights.
        keep: The factor of the state before each evaluation, n of them.
        weights: Of the outputs, newest first, n - 1 rows.
        ending: f_0, then the factors of the outputs before the last, newest first.
        alpha: alpha at the last time.
    """

    times: Tensor
    from_x: list[float]
    keep: list[float]
    weights: list[list[float]]
    ending: list[float]
    alpha: float


@dataclass(frozen=True)
class Fitted(Sampler):
    """One evaluation per step, only on the grid `own_grid(schedule)`.

    Its order is that of `Adams`, from which it starts; with a fixed number of steps it has no order itself.

    Args:
        log_snrs: Where the denoiser is evaluated, increasing.
        corrections: w, for each step but the last, newest output first.
        scales: s, one before each evaluation, or none.
        ending: f.
    """

    log_snrs: tuple[float, ...]
    corrections: tuple[tuple[float, ...], ...] = ()
    scales: tuple[float, ...] = ()
    ending: tuple[float, ...] = ()
    order: ClassVar[int] = Adams().order
    is_stochastic: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self)
        n = len(self.log_snrs)
        numbers = (*self.log_snrs, *self.scales, *self.ending, *(w for row in self.corrections for w in row))
        if n < 2 or not all(map(math.isfinite, numbers)) or any(b <= a for a, b in pairwise(self.log_snrs)):
            raise UserError(f"log_snrs: found {self.log_snrs}; need two or more, increasing, and all numbers finite")
        if len(self.corrections) not in (0, n - 1) or any(len(row) > i + 1 for i, row in enumerate(self.corrections)):
            raise UserError(f"corrections: need {n - 1} rows, of at most as many numbers as outputs are in hand")
        if len(self.scales) not in (0, n):
            raise UserError(f"scales: found {len(self.scales)} numbers; need {n}, or none")
        if len(self.ending) > n:
            raise UserError(f"ending: found {len(self.ending)} numbers; at most {n}")

    def times(self, schedule: Schedule) -> Tensor:
        """Where the denoiser is evaluated, shape (n,), float64; within the path."""
        log_snrs = torch.tensor(self.log_snrs, dtype=torch.float64)
        return schedule.inverse_log_snr(log_snrs).clamp(max=schedule.t_max)

    def own_grid(self, schedule: Schedule) -> Tensor:
        ends = torch.tensor([schedule.t_max, 0.0], dtype=torch.float64)
        return torch.cat((ends[:1], self.times(schedule)[1:], ends[1:]))

    def plan(self, schedule: Schedule) -> Plan:
        """All coefficients."""
        method, times = Adams(), self.times(schedule)
        variables = method.variables
        nodes, stages = method.plan(schedule, times)
        scale = variables.scale(nodes).tolist()
        factor, from_x = (value.tolist() for value in variables.output(nodes))
        euler = step_weights(variables, nodes[:-1], nodes[1:], nodes[:-1][:, None])[:, 0].tolist()
        weights = []
        for i, by_node in enumerate(method.stage_weights(nodes, stages)):
            corrections = self.corrections[i] if self.corrections else ()
            length = max(i - min(by_node) + 1, len(corrections))
            own = [by_node.get(i - d, 0.0) * factor[i - d] for d in range(length)]
            for d, w in enumerate(corrections):
                own[d] += w * euler[i] * factor[i - d]
            weights.append(own)
        start = Nodes.at_times(schedule, torch.tensor([schedule.t_max], dtype=torch.float64))
        first = float(variables.scale(nodes)[0] / variables.scale(start)[0])
        scales = self.scales or [0.0] * len(times)
        ratios = (first, *(scale[stage.to] / scale[stage.base] for stage in stages))
        keep = [own * (1.0 + s) for own, s in zip(ratios, scales, strict=True)]
        n, angle = len(times), float(variables.coordinate(nodes)[-1])
        ending = [f if d == 0 else f * angle * factor[n - 1 - d] for d, f in enumerate(self.ending)]
        return Plan(times, from_x, keep, weights, ending, float(nodes.alpha[-1]))

    def sample(self, denoiser, x_1, grid, noise=None, cond=None, callback=None):
        own = self.own_grid(denoiser.schedule)
        given = grid.detach().to(device="cpu", dtype=torch.float64)
        if given.shape != own.shape or not torch.allclose(given, own, rtol=0.0, atol=1e-9):
            raise UserError(f"grid: a fitted sampler has its own {len(own) - 1} steps; leave the grid out")
        return integrate(denoiser, self.plan(denoiser.schedule), x_1, (), cond, callback)

    def integrate(self, denoiser, x, times, noise, cond, callback):
        raise UserError("grid: a fitted sampler has its own steps, to clean data")


def integrate(
    denoiser: Denoiser,
    plan: Plan,
    x: Tensor,
    outputs: Sequence[Tensor],
    cond: Any = None,
    callback: Callback | None = None,
) -> Tensor:
    """Integrate from noise, or from any intermediate state, to data.

    Args:
        denoiser: The model.
        plan: The coefficients.
        x: The state at which the newest of `outputs` was evaluated; the noise if there is none.
        outputs: Those stored so far, newest first.
        cond, callback: As `Sampler.sample`.
    """
    outputs = list(outputs)
    x = _advance(plan, x, outputs)
    while (i := len(outputs)) < len(plan.times):
        x_hat = denoiser(x, plan.times[i], cond)
        outputs.insert(0, torch.sub(x_hat, x, alpha=plan.from_x[i]))
        x = _advance(plan, x, outputs)
        if callback is not None:
            callback(i, float(plan.times[i + 1]) if i + 1 < len(plan.times) else 0.0, x, x_hat)
    return x


def _advance(plan: Plan, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The next state, or the sample after the last evaluation."""
    known = len(outputs)
    if known == len(plan.times):
        x_hat = torch.add(outputs[0], x, alpha=plan.from_x[-1])
        end = x_hat
        for d, f in enumerate(plan.ending):
            end = end + f * (x / plan.alpha - x_hat if d == 0 else outputs[d])
        return end
    x = plan.keep[known] * x
    for weight, m in zip(plan.weights[known - 1] if known else (), outputs, strict=False):
        x = x.add_(m, alpha=weight)
    return x
