"""Fit a solver of few steps to a model, on trajectories of a batch of the model's own samples.

Gaps of the times, corrections of the weights and the ending of `samplers.fitted` are fitted at once by Levenberg and
Marquardt's method to the ends of accurate trajectories (after Bespoke solvers, arXiv 2310.19075, and non-stationary
solvers, arXiv 2403.01329). The cost of a sample is cap log(1 + e / cap), e its mean squared error: a few samples that
a coarse solver leads to another mode must not decide. Samples that were not fitted on decide, by their plain error,
which of the fits is kept, or none. Everything is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .auto_grid import Trajectories, equal_error, trajectories
from .denoisers.denoiser import Denoiser
from .errors import UserError
from .evaluations import evaluation_mode
from .samplers import Adams, Fitted
from .schedules.schedule import log_snr_ends

MOST_STEPS = 10  # beyond, `grid="auto"` is as good and the numbers to fit grow with the square
_ROWS = 256
_CAP = 1e-2  # of a squared error; data are of the order of 1
_SIZES = ((3, 3), (4, 4))  # outputs corrected in a step, numbers of the ending
_ITERATIONS = 12
_MOVE = 1e-3  # of the differences that stand for derivatives
_RIDGE = 1e-4  # of the first cost, on the squared numbers
_LEAST_GAIN = 2e-3
_DECIMALS = 6

Solver = Callable[[Tensor], Fitted]


@torch.no_grad()
def fit_sampler(denoiser: Denoiser, steps: int) -> Fitted:
    """The solver of `steps` evaluations that suits this model.

    Args:
        denoiser: The model; it is asked without labels, some thousands of times, of 256 samples.
        steps: 2 to 10.
    """
    if not 2 <= steps <= MOST_STEPS:
        raise UserError(f"steps: found {steps}; a fitted sampler takes 2 to {MOST_STEPS}")
    seen, unseen = trajectories(denoiser, _ROWS), trajectories(denoiser, _ROWS // 2, start=_ROWS)
    low, high = log_snr_ends(denoiser.schedule)
    base = equal_error(seen, Adams().order, steps, min(max(low + 1.0, 2.8 * math.log(steps)), high))
    with evaluation_mode(denoiser):
        found = [Fitted(tuple(round(v, _DECIMALS) for v in base.tolist()))]
        for depth, ending in _SIZES:
            solver, size = _family(base, high, depth, min(ending, steps))
            found.append(solver(_fit(denoiser, solver, size, seen)))
        errors = [float(_residual(denoiser, sampler, unseen).square().mean()) for sampler in found]
    return min(zip(errors, found, strict=True), key=lambda pair: pair[0] if math.isfinite(pair[0]) else math.inf)[1]


def _family(base: Tensor, high: float, depth: int, ending: int) -> tuple[Solver, int]:
    """From a vector of numbers to the solver, and how many numbers; all zero is Adams's method on `base`."""
    n = len(base)
    lengths = [min(depth, i + 1) for i in range(n - 1)]
    parts = [n - 1, *lengths, ending]

    def solver(numbers: Tensor) -> Fitted:
        gaps, *corrections, end = numbers.split(parts)
        log_snrs = torch.cat((base[:1], base[0] + (base.diff() * torch.exp(gaps.clamp(-3.0, 3.0))).cumsum(0)))
        # the last time is kept within the path by shrinking all gaps: times stay apart, whatever the numbers
        share = min(1.0, (high - float(base[0])) / float(log_snrs[-1] - base[0]))
        log_snrs = (base[0] + share * (log_snrs - base[0])).tolist()
        rounded = [tuple(round(v, _DECIMALS) for v in row) for row in (log_snrs, *(c.tolist() for c in corrections))]
        return Fitted(rounded[0], tuple(rounded[1:]), tuple(round(v, _DECIMALS) for v in end.tolist()))

    return solver, sum(parts)


def _residual(denoiser: Denoiser, sampler: Fitted, along: Trajectories) -> Tensor:
    """What is missed at the ends of trajectories: shape (B, dimensions), float64."""
    x = sampler.sample(denoiser, along.x_1, sampler.grid(denoiser.schedule))
    return (x - along.x).flatten(1).to(device="cpu", dtype=torch.float64)


def _fit(denoiser: Denoiser, solver: Solver, size: int, along: Trajectories) -> Tensor:
    """Levenberg and Marquardt's method from zero; derivatives by differences."""
    numbers, eye = torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    residual = _residual(denoiser, solver(numbers), along)
    first = _cost(residual)
    ridge, best, damping = _RIDGE * first, first, 1e-2
    for _ in range(_ITERATIONS):
        moved = [_residual(denoiser, solver(numbers + _MOVE * row), along) for row in eye]
        jacobian = torch.stack([(r - residual) / _MOVE for r in moved], -1)
        weight = 1.0 / (1.0 + residual.square().mean(1) / _CAP) / residual.numel()
        weighted = (jacobian * weight[:, None, None]).flatten(0, 1)
        hessian, gradient = weighted.T @ jacobian.flatten(0, 1), weighted.T @ residual.flatten()
        gain = 0.0
        for _ in range(6):
            damped = hessian + torch.diag(hessian.diagonal().clamp(min=1e-12)) * damping + ridge * eye
            tried = numbers - torch.linalg.solve(damped, gradient + ridge * numbers)
            missed = _residual(denoiser, solver(tried), along)
            value = _cost(missed) + ridge * float(tried.square().sum())
            if value < best:
                gain = 1.0 - value / best
                numbers, residual, best, damping = tried, missed, value, max(damping / 5.0, 1e-6)
                break
            damping *= 4.0
        if gain < _LEAST_GAIN:
            break
    return numbers


def _cost(residual: Tensor) -> float:
    error = residual.square().mean(1)
    cost = float((_CAP * torch.log1p(error / _CAP)).mean())
    return cost if math.isfinite(cost) else math.inf
