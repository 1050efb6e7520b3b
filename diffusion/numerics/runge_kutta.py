"""Adaptive Runge-Kutta on a batch in which every sample has its own time and step size.

Step control is that of torchdiffeq (Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", sec. II.4),
but separate for each sample: with e the error estimate of a step of order p and

    ratio = |e / (tolerance + tolerance max(|y|, |y'|))|,      h' = h min(10, max(0.9 ratio^(-1/p), 0.2)),

a step is accepted if ratio <= 1. h' is rounded down to a quarter of an octave: at the stability limit of a method step
sizes are chaotic, and would amplify the last bits of a network.

With common steps, which follow the hardest sample of a batch, a result changes with the rest of the batch within the
tolerance (docs/architecture.md has figures). With separate steps it changes only by rounding, unless rounding flips the
acceptance of a step, which is rare. A sample that has reached the end is no longer evaluated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SolverError

# dy/dt of some samples, given their times (b,), their states (b, d), and their rows in the batch (b,).
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
_SAFETY, _MOST, _LEAST = 0.9, 10.0, 0.2
_PER_OCTAVE = 4
# Relative to the interval, about the resolution of float64: smaller steps are lost in rounding.
_RESOLUTION = 1e-14


def solve_each(
    field: Field,
    y: Float[Tensor, " b d"],
    start: float,
    end: float,
    method: str,
    tolerance: float,
    norm: Callable[[Float[Tensor, " c d"]], Float[Tensor, " c"]],
    first_step: float,
) -> Float[Tensor, " b d"]:
    """The states at time `end` of samples that are y at time `start`.

    Args:
        field: dy/dt.
        y: The states, float64.
        start: The start time of all samples.
        end: The end time of all samples; nothing is evaluated beyond it.
        method: An adaptive method of torchdiffeq, whose coefficients are used.
        tolerance: The allowed error per step, relative and absolute.
        norm: The size of scaled errors (b, d), one per sample.
        first_step: The length of the first step.

    Raises:
        SolverError: If a step falls below the resolution of a float.
    """
    from torchdiffeq._impl.odeint import SOLVERS  # imported where needed: it loads much of scipy, 0.4 s

    tableau, order = SOLVERS[method].tableau, SOLVERS[method].order
    alpha, weights, error_weights = tableau.alpha.tolist(), tableau.c_sol.tolist(), tableau.c_error.tolist()
    beta = [row.tolist() for row in tableau.beta]
    # whether the last stage is the derivative at the new state ("first same as last")
    reused = beta[-1] == weights[: len(beta[-1])] and not weights[-1]
    y = y.clone()
    rows = torch.arange(len(y), device=y.device)
    t = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
    towards = first_step if end > start else -first_step
    exponent = torch.zeros_like(t)
    now, slope = y, field(t, y, rows)
    while len(rows):
        h = towards * 2.0 ** (exponent / _PER_OCTAVE)
        last = (end - t).abs() <= h.abs()
        h = torch.where(last, end - t, h)
        if bool((h.abs() < _RESOLUTION * abs(end - start)).any()):
            raise SolverError(
                f"ode: {method} could not go on (a step of {float(h.abs().min()):.1e}); use a larger tolerance"
            )
        stages = [slope]
        for c, coefficients in zip(alpha, beta, strict=True):
            at = torch.where(last & (c == 1.0), end, t + c * h)  # not beyond the end by rounding
            stages.append(field(at, now + h[:, None] * _combine(coefficients, stages), rows))
        following = now + h[:, None] * _combine(weights, stages)
        error = h[:, None] * _combine(error_weights, stages)
        if not reused:
            stages.append(field(torch.where(last, end, t + h), following, rows))
        ratio = norm(error / (tolerance + tolerance * torch.maximum(now.abs(), following.abs())))
        taken = ratio <= 1.0
        factor = (_SAFETY * ratio.clamp_min(1e-30) ** (-1.0 / order)).clamp(_LEAST, _MOST)
        factor = torch.where(taken, factor.clamp_min(1.0), factor)
        t = torch.where(taken, torch.where(last, end, t + h), t)
        now = torch.where(taken[:, None], following, now)
        slope = torch.where(taken[:, None], stages[-1], slope)
        # a sum of integers except for the last step, so that no rounding of h accumulates
        exponent = torch.where(last, _PER_OCTAVE * torch.log2(h / towards), exponent)
        exponent = (exponent + _PER_OCTAVE * torch.log2(factor)).floor()
        arrived = taken & last
        if bool(arrived.any()):
            y[rows[arrived]] = now[arrived]
            rows, t, exponent, now, slope = (values[~arrived] for values in (rows, t, exponent, now, slope))
    return y


def _combine(coefficients: list[float], stages: list[Tensor]) -> Tensor:
    """The sum of coefficient x stage."""
    total = torch.zeros_like(stages[0])
    for coefficient, stage in zip(coefficients, stages, strict=False):
        if coefficient:
            total = total + coefficient * stage
    return total
