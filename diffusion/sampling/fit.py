"""Fit a solver with few steps to a model, on trajectories of a batch of the model's samples.

Times, corrections of the weights and of the state, and the ending of `sampling.fitted` are fitted jointly by the
Levenberg-Marquardt method to the ends of accurate trajectories (after Bespoke solvers, arXiv 2310.19075, and
non-stationary solvers, arXiv 2403.01329). The fit starts from the Adams method on a grid of equal local errors with one
more step, without its first evaluation, of pure noise. The cost of a sample is cap log(1 + e / cap), e its mean squared
error, so that the few samples that a coarse solver takes to another mode do not dominate. Held-out samples decide, by
their plain error, between the fit, the Adams method on equal local errors, and the default.
Everything is seeded; time limits and progress are those of `auto_grid.tuning`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import FITTED, FITTED_STEPS
from ..denoisers.denoiser import Denoiser
from ..denoisers.evaluations import evaluation_mode
from ..errors import UserError
from ..samplers import Adams
from ..schedules.schedule import log_snr_ends
from .auto_grid import (
    _REFERENCE_STEPS,
    Clock,
    OutOfTime,
    Progress,
    Trajectories,
    cut_short,
    default_log_snrs,
    equal_error,
    known_grids,
    trajectories,
)
from .fitted import Fitted, integrate

DEFAULT_STEPS = 5
_ROWS, _UNSEEN = 256, 128
_CAP = 3e-4  # of a squared error; data are of the order of 1
_PLAIN_END, _END = 2.8, 2.0  # initial log-SNR where steps end, over the logarithm of their number
_DEPTH, _ENDING = 4, 4  # outputs corrected in a step, numbers of the ending
_ITERATIONS = 12
_MOVE = 1e-4  # of the finite differences
_RIDGE = 1e-4  # relative to the initial cost, on the squared numbers
_LEAST_GAIN = 2e-3
_DECIMALS = 6

FITTED_NOW = f"{FITTED} 3"  # version of the fit: results of earlier versions are not reused


def fitted_to(denoiser: Denoiser, steps: int, progress: Progress | None = None) -> Fitted:
    """`fit_sampler`, cached: its numbers are stored in the model's `known_grids`."""
    check_steps(steps)
    kept, key = known_grids(denoiser), f"{FITTED_NOW}, {steps} steps"
    for known in (key, cut_short(key)):
        if known in kept:
            with contextlib.suppress(UserError):  # of another version, or damaged: ignored
                return from_numbers(steps, kept[known])
    clock = Clock(_evaluations(steps))
    sampler = fit_sampler(denoiser, steps, progress, clock)
    kept[cut_short(key) if clock.was_over else key] = to_numbers(sampler)
    clock.finish()
    return sampler


def to_numbers(sampler: Fitted) -> tuple[float, ...]:
    """All numbers of a fitted sampler in one flat tuple, which can be written as text."""
    return *sampler.log_snrs, *(w for row in sampler.corrections for w in row), *sampler.scales, *sampler.ending


def from_numbers(steps: int, numbers: Sequence[float]) -> Fitted:
    """The inverse of `to_numbers`.

    Raises:
        UserError: For numbers that no fit with this many steps has.
    """
    parts = _parts(steps)
    if len(numbers) == steps:
        return Fitted(tuple(numbers))
    if len(numbers) != sum(parts):
        raise UserError(f"numbers: found {len(numbers)}; a fitted sampler of {steps} steps has {steps} or {sum(parts)}")
    left = iter(numbers)
    log_snrs, *corrections, scales, ending = (tuple(itertools.islice(left, part)) for part in parts)
    return Fitted(log_snrs, tuple(corrections), scales, ending)


@torch.no_grad()
def fit_sampler(denoiser: Denoiser, steps: int, progress: Progress | None = None, clock: Clock | None = None) -> Fitted:
    """The solver with `steps` evaluations fitted to this model.

    Args:
        denoiser: The model; it is evaluated without labels, with 256 samples, 240 times for their trajectories and, for
            5 steps, some 800 times by the fit.
        steps: 2 to 10.
        progress: Called after each iteration with (iterations done, maximum).
        clock: The clock of a tuning with a time limit.

    Raises:
        UserError: For other numbers of steps.
    """
    check_steps(steps)
    clock = clock or Clock(_evaluations(steps))
    # the default: in so few steps `abm` is `Adams`
    default = Fitted(tuple(round(v, _DECIMALS) for v in default_log_snrs(denoiser, Adams(), steps).tolist()))
    try:
        unseen = trajectories(denoiser, _UNSEEN, start=_ROWS, clock=clock)
        seen = trajectories(denoiser, _ROWS, clock=clock)
    except OutOfTime:
        return default
    low, high = log_snr_ends(denoiser.schedule)
    order = Adams().order
    # a fitted ending ends the path earlier than x_hat alone would
    plain_end, end = (min(max(low + 1.0, rate * math.log(steps)), high) for rate in (_PLAIN_END, _END))
    plain = Fitted(tuple(round(v, _DECIMALS) for v in equal_error(seen, order, steps, plain_end).tolist()))
    family = Family(equal_error(seen, order, steps + 1, end)[1:], low, high)
    with evaluation_mode(denoiser):
        fitted = family.solver(_fit(denoiser, family, seen, progress, clock))
        found = {s: float(_residual(denoiser, s, unseen).square().mean()) for s in (default, plain, fitted)}
    return min(found, key=lambda sampler: found[sampler] if math.isfinite(found[sampler]) else math.inf)


def check_steps(steps: int) -> None:
    """Refuse a number of steps for which no solver can be fitted."""
    if steps not in FITTED_STEPS:
        raise UserError(f"steps: found {steps}; a fitted sampler takes {FITTED_STEPS[0]} to {FITTED_STEPS[-1]}")


@dataclass(frozen=True)
class Family:
    """Solvers parametrised by a vector; zero is the Adams method on the times `base`.

    Args:
        base: Log-SNRs.
        low, high: Those of the ends of the path.
    """

    base: Tensor
    low: float
    high: float

    @property
    def parts(self) -> list[int]:
        """The number of parameters of the first time and the gaps, each row of corrections, the scales, the ending."""
        return _parts(len(self.base))

    @property
    def stages(self) -> list[int]:
        """For each parameter, how many evaluations are unaffected by it."""
        n = len(self.base)
        _, *rows, _, ending = self.parts
        return [*range(n), *(i + 1 for i, row in enumerate(rows) for _ in range(row)), *range(n), *[n] * ending]

    def solver(self, numbers: Tensor) -> Fitted:
        """The solver with these parameters."""
        (first, *gaps), *corrections, scales, ending = (part.tolist() for part in numbers.split(self.parts))
        start = min(max(float(self.base[0]) + first, self.low), self.high - 1.0)
        lengths = self.base.diff() * torch.tensor(gaps, dtype=torch.float64).clamp(-3.0, 3.0).exp()
        # the last time is kept within the path by shrinking all gaps: times stay distinct for any parameters
        lengths = lengths * min(1.0, (self.high - start) / float(lengths.sum()))
        log_snrs = [start, *(start + lengths.cumsum(0)).tolist()]
        rounded = [tuple(round(v, _DECIMALS) for v in row) for row in (log_snrs, *corrections, scales, ending)]
        return Fitted(rounded[0], tuple(rounded[1:-2]), rounded[-2], rounded[-1])


def _parts(n: int) -> list[int]:
    return [n, *(min(_DEPTH, i + 1) for i in range(n - 1)), n, min(_ENDING, n)]


def _residual(denoiser: Denoiser, sampler: Fitted, along: Trajectories) -> Tensor:
    """The error at the ends of trajectories: shape (B, dimensions), float64."""
    return _missed(integrate(denoiser, sampler.plan(denoiser.schedule), along.x_1, ()), along)


def _missed(x: Tensor, along: Trajectories) -> Tensor:
    return (x - along.x).flatten(1).to(device="cpu", dtype=torch.float64)


def _jacobian(denoiser: Denoiser, family: Family, numbers: Tensor, along: Trajectories) -> tuple[Tensor, Tensor]:
    """The residual and its derivatives in the parameters, by finite differences: (B, dimensions) and one more axis.

    Evaluations unaffected by a parameter are not repeated.
    """
    plan = family.solver(numbers).plan(denoiser.schedule)
    states, outputs = [along.x_1, plan.keep[0] * along.x_1], []

    def keep(step: int, t: float, x: Tensor, x_hat: Tensor | None) -> None:
        assert x_hat is not None
        outputs.insert(0, x_hat - plan.from_x[step] * states[-1])
        states.append(x)

    residual = _missed(integrate(denoiser, plan, along.x_1, (), callback=keep), along)
    columns = []
    for i, stage in enumerate(family.stages):  # a stage is the number of unaffected evaluations
        moved = numbers.clone()
        moved[i] += _MOVE
        own = family.solver(moved).plan(denoiser.schedule)
        if not torch.equal(own.times[:stage], plan.times[:stage]):
            stage = 0  # earlier times also moved: all gaps were shrunk to stay within the path
        x = integrate(denoiser, own, states[stage], outputs[len(outputs) - stage :])
        columns.append((_missed(x, along) - residual) / _MOVE)
    return residual, torch.stack(columns, -1)


def _evaluations(steps: int) -> int:
    """The approximate number for a fit: of trajectories, and of derivatives in each parameter from where it acts."""
    stages = Family(torch.arange(float(steps)), -math.inf, math.inf).stages
    return 2 * _REFERENCE_STEPS + _ITERATIONS * (3 * steps + sum(steps - stage for stage in stages))


def _fit(denoiser: Denoiser, family: Family, along: Trajectories, progress: Progress | None, clock: Clock) -> Tensor:
    """The Levenberg-Marquardt method, starting from zero."""
    size = sum(family.parts)
    numbers, eye = torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    best = _cost(_residual(denoiser, family.solver(numbers), along))
    if not math.isfinite(best):
        return numbers
    ridge, damping = _RIDGE * best, 1e-2
    for done in range(_ITERATIONS):
        if clock.is_over:
            break
        residual, jacobian = _jacobian(denoiser, family, numbers, along)
        weight = 1.0 / (1.0 + residual.square().mean(1) / _CAP) / residual.numel()
        weighted = (jacobian * weight[:, None, None]).flatten(0, 1)
        hessian, gradient = weighted.T @ jacobian.flatten(0, 1), weighted.T @ residual.flatten()
        gain = 0.0
        for _ in range(6):
            damped = hessian + torch.diag(hessian.diagonal().clamp(min=1e-12)) * damping + ridge * eye
            tried = numbers - torch.linalg.solve(damped, gradient + ridge * numbers)
            missed = _residual(denoiser, family.solver(tried), along)
            value = _cost(missed) + ridge * float(tried.square().sum())
            if value < best:
                gain = 1.0 - value / best
                numbers, best, damping = tried, value, max(damping / 5.0, 1e-6)
                break
            damping *= 4.0
        clock.spend((_evaluations(len(family.base)) - 2 * _REFERENCE_STEPS) // _ITERATIONS)
        if progress is not None:
            progress(done + 1, _ITERATIONS)
        if gain < _LEAST_GAIN:
            break
    return numbers


def _cost(residual: Tensor) -> float:
    error = residual.square().mean(1)
    cost = float((_CAP * torch.log1p(error / _CAP)).mean())
    return cost if math.isfinite(cost) else math.inf
