"""A multistep solver whose numbers were fitted to a model: its times, its weights, and how it ends.

In the velocity variables of `variables`, on its own times, a step of Adams's method with every weight corrected,

    x_{i+1} = (r_{i+1} / r_i) x_i + sum_d (b_id + w_id e_i) m_{i-d},      e_i: the weight of Euler's method

and, after the last evaluation, a linear combination in place of x_hat alone:

    x = x_hat + f_0 (x_n / alpha_n - x_hat) + sum_{d > 0} f_d phi_n m_{n-d}

All numbers zero is `Adams` on these times. A solver whose every step has its own weights is non-stationary (Shaul et
al., arXiv 2403.01329); `diffusion.fit_sampler` finds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import UserError
from ..schedules import Schedule
from .adams import Adams
from .sampler import Sampler
from .variables import Nodes, step_weights


@dataclass(frozen=True)
class Plan:
    """What the loop reads; lists by the step.

    Args:
        times: Where the denoiser is asked, shape (n,), float64.
        from_x: An output kept is x_hat - from_x x_t; its factor is in the weights.
        keep: The factor of the state, n - 1 of them.
        weights: Of the outputs, newest first, n - 1 rows.
        ending: f_0, then the factors of the outputs before the last, newest first.
        alpha: At the last time.
    """

    times: Tensor
    from_x: list[float]
    keep: list[float]
    weights: list[list[float]]
    ending: list[float]
    alpha: float


@dataclass(frozen=True)
class Fitted(Sampler):
    """One evaluation a step, on the grid `grid(schedule)` and no other.

    Its order is that of `Adams`, from which it departs; with a given number of steps it has none of its own.

    Args:
        log_snrs: Where the denoiser is asked, increasing.
        corrections: w, for each step but the last, newest output first.
        ending: f.
    """

    log_snrs: tuple[float, ...]
    corrections: tuple[tuple[float, ...], ...] = ()
    ending: tuple[float, ...] = ()

    def __post_init__(self):
        n = len(self.log_snrs)
        numbers = (*self.log_snrs, *self.ending, *(w for row in self.corrections for w in row))
        if n < 2 or not all(map(math.isfinite, numbers)) or any(b <= a for a, b in pairwise(self.log_snrs)):
            raise UserError(f"log_snrs: found {self.log_snrs}; need two or more, increasing, and all numbers finite")
        if len(self.corrections) not in (0, n - 1) or any(len(row) > i + 1 for i, row in enumerate(self.corrections)):
            raise UserError(f"corrections: need {n - 1} rows, of at most as many numbers as outputs are in hand")
        if len(self.ending) > n:
            raise UserError(f"ending: found {len(self.ending)} numbers; at most {n}")

    @property
    def order(self) -> int:
        return Adams().order

    @property
    def is_stochastic(self) -> bool:
        return False

    def grid(self, schedule: Schedule) -> Tensor:
        """The only grid that it walks, to the datum."""
        times = schedule.inverse_log_snr(torch.tensor(self.log_snrs, dtype=torch.float64))
        times[0] = schedule.t_max
        return torch.cat((times, torch.zeros(1, dtype=torch.float64)))

    def plan(self, schedule: Schedule) -> Plan:
        """The numbers in full."""
        method, times = Adams(), self.grid(schedule)[:-1]
        nodes, variables = Nodes.at_times(schedule, times), method.variables
        rows = method.rows(schedule, times)
        factor, from_x = (value.tolist() for value in variables.output(nodes))
        euler = step_weights(variables, nodes[:-1], nodes[1:], nodes[:-1][:, None])[:, 0].tolist()
        weights = []
        for i, row in enumerate(rows):
            corrections = self.corrections[i] if self.corrections else ()
            length = max(len(row.weights), len(corrections))
            own = [*row.weights, *[0.0] * (length - len(row.weights))]
            for d, w in enumerate(corrections):
                own[d] += w * euler[i] * factor[i - d]
            weights.append(own)
        n, angle = len(times), float(variables.coordinate(nodes)[-1])
        ending = [f if d == 0 else f * angle * factor[n - 1 - d] for d, f in enumerate(self.ending)]
        return Plan(times, from_x, [row.keep for row in rows], weights, ending, float(nodes.alpha[-1]))

    def sample(self, denoiser, x_1, grid, noise=None, cond=None, callback=None):
        own = self.grid(denoiser.schedule)
        given = grid.detach().to(device="cpu", dtype=torch.float64)
        if given.shape != own.shape or not torch.allclose(given, own, rtol=0.0, atol=1e-9):
            raise UserError(f"grid: a fitted sampler walks its own {len(own) - 1} steps; pass its grid(schedule)")
        plan, x, outputs = self.plan(denoiser.schedule), x_1, []
        for i, t in enumerate(plan.times):
            x_hat = denoiser(x, t, cond)
            outputs.insert(0, torch.sub(x_hat, x, alpha=plan.from_x[i]))
            if i < len(plan.weights):
                x = plan.keep[i] * x
                for weight, m in zip(plan.weights[i], outputs, strict=False):
                    x = x.add_(m, alpha=weight)
            else:
                end = x_hat
                for d, f in enumerate(plan.ending):
                    end = end + f * (x / plan.alpha - x_hat if d == 0 else outputs[d])
                x = end
            if callback is not None:
                callback(i, float(own[i + 1]), x, x_hat)
        return x

    def integrate(self, denoiser, x, times, noise, cond, callback):
        raise UserError("grid: a fitted sampler walks its own steps, to the datum")
