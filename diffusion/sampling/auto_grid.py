"""A grid tuned to a model and a sampler, from trajectories of a small batch of the model's samples.

Where a step costs accuracy depends on the data. The ODE is written as d(x / r) / dphi = m, in the velocity variables of
`samplers.ode.coordinates`: there an error in any step propagates to the final x unchanged within a factor of three
(measured by adjoints on exact mixtures), so the errors of all steps can be compared directly. The grid is computed in
two stages.

1. Equal local error. A step of length H with a solver of order p has an error of about |d^p m / dphi^p| H^(p+1). The
   derivative, for p = 1 or 2, is measured along one accurate trajectory of a batch, and the steps are placed at equal
   increments of the integral of |d^p m / dphi^p|^(1/(p+1)) dphi.
2. Equal local errors ignore where errors cancel, and from where the last step can be taken. For a deterministic sampler
   the lengths of the steps are warped by a piecewise linear function with five knots, and the end is moved, by a
   pattern search on the sampler's error at the ends of the trajectories. Held-out samples decide between the warped
   grid, equal errors, and the sampler's default grid, so tuning never makes it worse.

Everything is seeded: the same model, sampler and number of steps have the same grid, unless the time limit was reached
(`tuning`); then the best so far is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser, device_of
from ..denoisers.evaluations import evaluation_mode
from ..numerics.random import Noise
from ..samplers import Adams, Sampler
from ..samplers.ode.coordinates import Nodes, Velocity
from ..samplers.sampler import is_value
from ..schedules import Schedule, time_grid
from ..schedules.schedule import log_snr_ends
from ..schedules.time_grids import LOG_SNR_END, SHIFTED, default_end, later_end

SEED = 2**31 + 1
_REFERENCE_STEPS = 240
_DENSITY_ROWS = 32
# A solve of the search costs about this many rows for any number of steps: with few steps, errors are rare and large,
# and need more samples.
_ROWS = 1280
_LEAST_ROWS, _MOST_ROWS, _LEAST_UNSEEN = 32, 256, 128
_EVALUATIONS = 1000  # of the batch, by the search
_KNOTS = 5
_SMOOTHING = 0.7  # in log-SNR
_LEAST_DENSITY = 0.02  # of the largest
_PENALTY = 0.05  # on the squared logarithms of the warp
_FIRST_MOVE, _LAST_MOVE, _MOST_BENT = 0.5, 0.02, 3.0
_DECIMALS = 4  # of log-SNRs, so that a grid survives being written as text

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tuning:
    """The time limit in seconds, and the callback for progress (evaluations done, approximate total)."""

    seconds: float = math.inf
    progress: Progress | None = None


_UNLIMITED = Tuning()
_TUNING: ContextVar[Tuning] = ContextVar("tuning", default=_UNLIMITED)


@contextmanager
def tuning(seconds: float = math.inf, progress: Progress | None = None) -> Iterator[None]:
    """While open, each tuning (of a grid or a fitted sampler) takes at most this long, and reports its progress.

    Truncated results are cached with their limit: with more time they are tuned again.
    """
    token = _TUNING.set(Tuning(seconds, progress))
    try:
        yield
    finally:
        _TUNING.reset(token)


class OutOfTime(Exception):
    """The time limit was reached before there was any result."""


class Clock:
    """Counts the evaluations of one tuning.

    Args:
        total: The approximate maximum number of evaluations.
    """

    def __init__(self, total: int):
        self._tuning, self._total, self._done, self._start = _TUNING.get(), total, 0, time.monotonic()
        self.was_over = False

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        self.was_over = self.was_over or time.monotonic() - self._start > self._tuning.seconds
        return self.was_over

    def spend(self, evaluations: int) -> None:
        """Count evaluations of a batch, and report them."""
        self._done = min(self._done + evaluations, self._total)
        if self._tuning.progress is not None:
            self._tuning.progress(self._done, self._total)

    def finish(self) -> None:
        """Report completion."""
        self.spend(self._total)


def cut_short(key: str) -> str:
    """The key in `known_grids` of a result truncated by the current limit."""
    return f"{key}, within {_TUNING.get().seconds:g} s"


_GRIDS: WeakKeyDictionary[Denoiser, tuple[tuple[object, ...], dict[str, tuple[float, ...]]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Trajectories:
    """Solutions of the probability-flow ODE, from noise to data, and how fast the velocity changes along them.

    Args:
        x_1: The states at t_max, shape (B, *shape).
        x: The samples that they lead to, shape (B, *shape).
        log_snrs: The nodes of the solution.
        slopes: The root mean square of d m / dphi at the nodes, and of d^2 m / dphi^2.
        dphi: |dphi / d log-SNR| at the nodes.
    """

    x_1: Tensor
    x: Tensor
    log_snrs: Tensor
    slopes: tuple[Tensor, Tensor]
    dphi: Tensor

    def density(self, order: int) -> Tensor:
        """The steps per unit of log-SNR, at the nodes and up to a factor, for equal local errors at this order."""
        p = min(order, len(self.slopes))
        density = self.slopes[p - 1] ** (1.0 / (p + 1)) * self.dphi
        distances = (self.log_snrs[:, None] - self.log_snrs) / _SMOOTHING
        density = torch.softmax(-0.5 * distances**2, dim=1) @ density
        return density.clamp(min=_LEAST_DENSITY * float(density.max()))


@torch.no_grad()
def trajectories(denoiser: Denoiser, n: int, start: int = 0, clock: Clock | None = None) -> Trajectories:
    """Solve the probability-flow ODE for samples `start` to `start + n`, by the Adams method of order 4 in 240 steps.

    Raises:
        OutOfTime: If the time is up.
    """
    schedule = denoiser.schedule
    low, high = log_snr_ends(schedule)
    log_snrs = torch.linspace(low, high, _REFERENCE_STEPS, dtype=torch.float64)
    times = _times(schedule, log_snrs)
    variables = Velocity(0.5)
    nodes = Nodes.at_times(schedule, times[:-1])
    phi = variables.coordinate(nodes)
    factor, from_x = (value.tolist() for value in variables.output(nodes))
    indices = torch.arange(start, start + n)
    noise = Noise(SEED, indices, denoiser.shape, torch.float64, device_of(denoiser))
    x_1 = noise.initial() * float(torch.hypot(*schedule(times[0])))
    rows = slice(0, _DENSITY_ROWS)
    state, velocities = x_1[rows], []
    squares: list[list[Tensor]] = [[], []]

    def watch(step: int, t: float, x: Tensor, x_hat: Tensor | None) -> None:
        nonlocal state
        assert x_hat is not None
        if clock is not None:
            clock.spend(1)
            if clock.is_over:
                raise OutOfTime
        if step < len(factor) - 1:
            velocities.append(factor[step] * (x_hat[rows] - from_x[step] * state))
            state = x[rows]
        if len(velocities) == 3:
            first, second = (
                (velocities[j + 1] - velocities[j]) / float(phi[step - 1 + j] - phi[step - 2 + j]) for j in (0, 1)
            )
            squares[0].append(first.square().mean())
            squares[1].append((2.0 * (second - first) / float(phi[step] - phi[step - 2])).square().mean())
            velocities.pop(0)

    with evaluation_mode(denoiser):
        x = Adams(predictor=3).sample(denoiser, x_1, times, callback=watch)
    kept = slice(1, len(squares[0]) + 1)
    dphi = torch.gradient(phi, spacing=(log_snrs,))[0].abs()
    first, second = (torch.stack(values).cpu().sqrt() for values in squares)
    return Trajectories(x_1, x, log_snrs[kept], (first, second), dphi[kept])


def auto_grid(denoiser: Denoiser, sampler: Sampler, steps: int) -> Float[Tensor, " times"]:
    """The grid of `steps` intervals tuned to this model and sampler; cached for a model in memory.

    Args:
        denoiser: The model; it is evaluated without labels, about 1,500 times, with 32 to 256 samples.
        sampler: The sampler that will use the grid. One that draws noise gets equal local errors and the usual end; one
            that chooses its own steps gets the grid `log-snr` to the end of the path.
        steps: The number of intervals, at least 1; the last one ends at clean data.
    """
    grids = known_grids(denoiser) if is_value(sampler) else {}  # a user's sampler may change
    key = f"{_kind(sampler)}, {steps} steps"
    if key not in grids and (short := cut_short(key)) in grids:
        key = short
    if key not in grids:
        clock = Clock(2 * _REFERENCE_STEPS + _EVALUATIONS)
        found = _tuned(denoiser, sampler, steps, clock)
        key = cut_short(key) if clock.was_over else key
        grids[key] = found
        clock.finish()
    return _times(denoiser.schedule, torch.tensor(grids[key], dtype=torch.float64))


def known_grids(denoiser: Denoiser) -> dict[str, tuple[float, ...]]:
    """The cached grids of a model, as log-SNRs, by sampler and steps; `auto_grid` adds to them."""
    values = denoiser.state_dict(keep_vars=True).values()
    # weights created in inference mode have no version counter
    state = tuple((value.data_ptr(), object() if value.is_inference() else value._version) for value in values)
    found = _GRIDS.get(denoiser)
    if found is None or found[0] != state:  # new, or its weights have changed
        found = _GRIDS[denoiser] = (state, {})
    return found[1]


def _kind(sampler: Sampler) -> str:
    """What the grid depends on: the sampler, and the default grid that the tuned one was compared with."""
    if sampler.is_adaptive:
        return "adaptive"
    return f"noise of order {sampler.order}" if sampler.is_stochastic else f"{sampler} against {sampler.default_grid}"


def _tuned(denoiser: Denoiser, sampler: Sampler, steps: int, clock: Clock) -> tuple[float, ...]:
    schedule = denoiser.schedule
    low, high = log_snr_ends(schedule)
    if sampler.is_adaptive or steps < 2:
        return _rounded(schedule.log_snr(time_grid(schedule, max(steps, 1), "log-snr", math.inf)[:-1]))
    plain = default_log_snrs(denoiser, sampler, steps)
    rows = min(_MOST_ROWS, max(_LEAST_ROWS, _ROWS // steps))
    try:
        if sampler.is_stochastic:
            along = trajectories(denoiser, _LEAST_ROWS, clock=clock)
            return _rounded(equal_error(along, sampler.order, steps, min(LOG_SNR_END, high)))
        unseen = trajectories(denoiser, max(rows // 2, _LEAST_UNSEEN), start=rows, clock=clock)
        seen = trajectories(denoiser, rows, clock=clock)
    except OutOfTime:
        return _rounded(plain)
    base = equal_error(seen, sampler.order, steps, min(max(low + 1.0, default_end(SHIFTED, steps)), high))
    bent = _search(denoiser, sampler, base, high, seen, clock)
    return _rounded(min((plain, base, bent), key=lambda log_snrs: _error(denoiser, sampler, log_snrs, unseen)))


def default_log_snrs(denoiser: Denoiser, sampler: Sampler, steps: int) -> Tensor:
    """Those of the sampler's default grid, without the final 0."""
    schedule, grid = denoiser.schedule, sampler.default_grid
    times = time_grid(schedule, steps, grid, later_end(grid, steps), math.prod(denoiser.shape))
    return schedule.log_snr(times[:-1])


def equal_error(along: Trajectories, order: int, steps: int, end: float) -> Tensor:
    """Log-SNRs at equal increments of the integrated density, from the noise to `end`."""
    density, nodes = along.density(order), along.log_snrs
    total = torch.cat((torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, nodes)))
    last = _interpolate(torch.tensor([end], dtype=torch.float64), nodes, total)
    placed = _interpolate(torch.linspace(0, 1, steps, dtype=torch.float64) * last, total, nodes)
    placed[-1] = end
    return placed


def _search(
    denoiser: Denoiser, sampler: Sampler, base: Tensor, high: float, along: Trajectories, clock: Clock
) -> Tensor:
    """Warp the steps of `base` and move its end, as long as that lowers the error."""
    steps = len(base)
    count = min(_KNOTS, steps - 1)
    middles = (torch.arange(steps - 1, dtype=torch.float64) + 0.5) / (steps - 1)
    knots = torch.linspace(0, 1, max(count, 2), dtype=torch.float64)
    hats = torch.stack([_interpolate(middles, knots, row) for row in torch.eye(len(knots), dtype=torch.float64)])

    def bent(by: Tensor) -> Tensor:
        lengths = base.diff() * torch.exp(by[1:] @ hats)
        end = min(float(base[-1] + 2.0 * by[0]), high)
        lengths = torch.cat((torch.zeros(1, dtype=torch.float64), lengths.cumsum(0)))
        return base[0] + lengths * ((end - base[0]) / lengths[-1])

    def objective(by: Tensor) -> float:
        clock.spend(cost)
        return _error(denoiser, sampler, bent(by), along) + _PENALTY * float(by[1:].square().sum())

    assert sampler.evaluations_per_step is not None
    cost = (steps - 1) * sampler.evaluations_per_step + sampler.starting_evaluations + 1
    left = max(1, _EVALUATIONS // cost)
    at = torch.zeros(len(knots) + 1, dtype=torch.float64)
    moves = torch.full_like(at, _FIRST_MOVE)
    best, turn = objective(at), 0
    while left > 0 and bool((moves > _LAST_MOVE).any()) and not clock.is_over:
        j = turn % len(at)
        turn += 1
        for sign in (1.0, -1.0):
            tried = at.clone()
            tried[j] = (tried[j] + sign * moves[j]).clamp(-_MOST_BENT, _MOST_BENT)
            value = objective(tried)
            left -= 1
            if value < best:
                best, at = value, tried
                moves[j] *= 1.5
                break
        else:
            moves[j] *= 0.4
    return bent(at)


@torch.no_grad()
def _error(denoiser: Denoiser, sampler: Sampler, log_snrs: Tensor, along: Trajectories) -> float:
    """The logarithm of the root mean square error of a sampler at the ends of trajectories; infinite if it fails."""
    grid = _times(denoiser.schedule, log_snrs)
    if not bool((grid.diff() < 0).all()):
        return math.inf
    with evaluation_mode(denoiser):
        error = float((sampler.sample(denoiser, along.x_1, grid) - along.x).square().mean())
    return 0.5 * math.log(max(error, 1e-30)) if math.isfinite(error) else math.inf


def _times(schedule: Schedule, log_snrs: Tensor) -> Tensor:
    times = schedule.inverse_log_snr(log_snrs)
    times[0] = schedule.t_max
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))


def _rounded(log_snrs: Tensor) -> tuple[float, ...]:
    return tuple(round(value, _DECIMALS) for value in log_snrs.tolist())


def _interpolate(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (nodes, values), constant beyond them."""
    x = x.clamp(float(nodes[0]), float(nodes[-1]))
    i = torch.searchsorted(nodes, x.contiguous()).clamp(1, len(nodes) - 1)
    share = (x - nodes[i - 1]) / (nodes[i] - nodes[i - 1])
    return torch.lerp(values[i - 1], values[i], share)
