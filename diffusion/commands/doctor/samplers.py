"""Every sampler of the registry, with its defaults, against exact models on a device.

    deterministic     Gaussian data: the largest error along the second half of the path against the closed form, at 64
                      and 128 steps from log-SNR -4 to 4, in deviations of x_t, and the order that the two make
    adaptive          the same at the end of the path, at the sampler's own tolerance
    with noise        Gaussian data: mean and deviation of the exact law (`samplers.affine_law`) at 64 and 128 steps;
                      by drawing, where the sampler is not affine or chooses its own steps
    fixed steps       Gaussian data of deviation 0.01, on the default grid to clean data: the deviation that is drawn,
                      over the one that the end of the grid leaves; read off, where the sampler is affine
    all               a mixture, in float32 through `diffusion.sample`: each sample against a tight solve of the
                      probability flow, or the mean log-density of the samples against that of exact draws

A sampler's own properties decide which of these apply to it: a new name in the registry needs no change here.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ...denoisers.exact import Gaussian, GaussianMixture
from ...samplers import ODE, Sampler, build, names
from ...samplers.affine_law import affine_law
from ...sampling.sample import grid_for, sample
from ...schedules import EDM, VP, Schedule
from .check import Check, attempt, below, within

GROUP = "samplers"
# The path's end is held at log-SNR 4: there the data and the noise are both in x_t, and no error hides.
_LOG_SNR, _STEPS = 4.0, (64, 128)
_MEAN, _STD = 0.7, 0.4
_SCHEDULES: tuple[Schedule, ...] = (VP(), EDM())
_AFFINE = 1e-9
_SLACK = 0.35  # of an order, as in the tests
_NARROW = 0.01
_DRAWN, _WIDTH = 64, 100
_POINTS, _MIXTURE_STEPS = 256, 50
_F64 = torch.float64


def check_samplers(device: torch.device) -> list[Check]:
    """The checks of all samplers."""
    return [
        check
        for name in names()
        for check in attempt(GROUP, name, lambda name=name: check_sampler(name, build(name), device))
    ]


def check_sampler(name: str, sampler: Sampler, device: torch.device) -> list[Check]:
    """The checks of one sampler."""
    if sampler.is_stochastic:
        made = [_law(name, sampler, schedule, device) for schedule in _SCHEDULES]
    elif sampler.is_adaptive:
        made = [_adaptive(name, sampler, schedule, device) for schedule in _SCHEDULES]
    else:
        made = [_trajectory(name, sampler, schedule, device) for schedule in _SCHEDULES]
    made.append(_end(name, sampler, device))
    return [*(check for checks in made for check in checks), *_mixture(name, sampler, device)]


def _end(name: str, sampler: Sampler, device: torch.device) -> list[Check]:
    """What is left of narrow data; nothing of a sampler that chooses its own steps or is not affine."""
    if sampler.is_adaptive:
        return []
    schedule = _SCHEDULES[0]
    model = Gaussian(torch.full((1,), _MEAN, dtype=_F64), _NARROW, schedule).to(device)
    grid = grid_for(model, sampler, _STEPS[-1], None)
    law = affine_law(sampler, model, grid)
    if law.residual > _AFFINE:
        return []
    variance = float(law.push(*model.law_at(grid[0]))[1])
    floor = _NARROW**2 / math.hypot(_NARROW, math.exp(-0.5 * float(schedule.log_snr(grid[-2]))))
    what = f"narrow data, {_STEPS[-1]} steps to the end, deviation / what that leaves"
    return [within(GROUP, name, what, math.sqrt(variance) / floor, 1.0, 0.12 if sampler.order == 1 else 0.03)]


def _gaussian(schedule: Schedule, device: torch.device, width: int = 1) -> Gaussian:
    return Gaussian(torch.full((width,), _MEAN, dtype=_F64), _STD, schedule).to(device)


def _grid(schedule: Schedule, steps: int) -> Tensor:
    """Times that end short of clean data, uniform in log-SNR."""
    return schedule.inverse_log_snr(torch.linspace(-_LOG_SNR, _LOG_SNR, steps + 1, dtype=_F64))


def _step(sampler: Sampler) -> float:
    """The error that is allowed at the finer grid: its step in log-SNR to the power of the order."""
    return (2.0 * _LOG_SNR / _STEPS[-1]) ** sampler.order


def _trajectory(name: str, sampler: Sampler, schedule: Schedule, device: torch.device) -> list[Check]:
    model, errors = _gaussian(schedule, device), []
    for steps in _STEPS:
        grid = _grid(schedule, steps)
        x_1 = _starts(model, grid[0])
        states: list[Tensor] = []
        sampler.sample(model, x_1, grid, callback=lambda _, t, x, x_hat, states=states: states.append(x))
        # The largest error of the second half: at its end alone two errors may cancel.
        late = slice(steps // 2, steps)
        errors.append(_in_deviations(model, torch.stack(states[late]), x_1, grid[0], grid[1:][late, None, None]))
    slope = math.log2(errors[0] / errors[1]) if min(errors) > 0 else math.inf
    path = type(schedule).__name__
    return [
        below(GROUP, name, f"path, {path}, {_STEPS[-1]} steps", errors[1], _step(sampler)),
        within(GROUP, name, f"order, {path}", slope, float(sampler.order), _SLACK),
    ]


def _adaptive(name: str, sampler: Sampler, schedule: Schedule, device: torch.device) -> list[Check]:
    model, grid = _gaussian(schedule, device), _grid(schedule, 1)
    x_1 = _starts(model, grid[0])
    tolerance = float(vars(sampler)["tolerance"])
    error = _in_deviations(model, sampler.sample(model, x_1, grid), x_1, grid[0], grid[1])
    return [below(GROUP, name, f"end of the path, {type(schedule).__name__}", error, 10.0 * tolerance)]


def _starts(model: Gaussian, t: Tensor) -> Tensor:
    mean, variance = model.law_at(t)
    return (mean + variance.sqrt() * torch.tensor([-1.5, 0.3, 2.0]).to(mean))[:, None]


def _in_deviations(model: Gaussian, x: Tensor, x_1: Tensor, start: Tensor, t: Tensor) -> float:
    error = x - model.flow(x_1, start, t)
    return float((error / model.law_at(t)[1].sqrt()).abs().max())


def _law(name: str, sampler: Sampler, schedule: Schedule, device: torch.device) -> list[Check]:
    if sampler.is_adaptive:
        return _drawn_law(name, sampler, schedule, device)
    model, errors, found = _gaussian(schedule, device), [], (math.nan, math.nan)
    for steps in _STEPS:
        grid = _grid(schedule, steps)
        law = affine_law(sampler, model, grid)
        if law.residual > _AFFINE:
            return _drawn_law(name, sampler, schedule, device)
        mean, variance = map(float, law.push(*model.law_at(grid[0])))
        true_mean, true_variance = map(float, model.law_at(grid[-1]))
        found = (mean - true_mean) / math.sqrt(true_variance), math.sqrt(variance / true_variance)
        errors.append(max(abs(found[0]), abs(found[1] - 1.0)))
    path, allowed = type(schedule).__name__, _step(sampler)
    made = [
        within(GROUP, name, f"mean, {path}", found[0], 0.0, allowed),
        within(GROUP, name, f"deviation / truth, {path}", found[1], 1.0, allowed),
    ]
    order = math.log2(errors[0] / errors[1]) if min(errors) > _AFFINE else math.inf
    expected = f"{sampler.order} - {_SLACK} or more"
    return [*made, Check(GROUP, name, f"order of the law, {path}", f"{order:.2f}", expected,
                         order >= sampler.order - _SLACK)]  # fmt: skip


def _drawn_law(name: str, sampler: Sampler, schedule: Schedule, device: torch.device) -> list[Check]:
    """What cannot be read off is drawn: 64 samples of 100 independent dimensions, 50 steps."""
    x = sample(_gaussian(schedule, device, _WIDTH), _DRAWN, sampler, _MIXTURE_STEPS, dtype=_F64)
    n, path = x.numel(), type(schedule).__name__
    mean, deviation = float(x.mean() - _MEAN) / _STD, float(x.std()) / _STD
    # 0.02 and 0.08 are the solver's own share at these settings, the rest four standard errors
    return [
        within(GROUP, name, f"mean of {n} draws, {path}", mean, 0.0, 0.02 + 4.0 / math.sqrt(n)),
        within(GROUP, name, f"deviation / truth, {path}", deviation, 1.0, 0.08 + 4.0 / math.sqrt(2.0 * n)),
    ]


def _modes(device: torch.device) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.1, -1.1]])
    stds, weights = torch.tensor([0.3, 0.15, 0.5]), torch.tensor([0.5, 0.2, 0.3])
    return GaussianMixture(means, stds, _SCHEDULES[0], weights).to(device)


@cache
def _exact(device: torch.device) -> Tensor:
    """Where the probability flow takes the samples of `_mixture`, the same for every sampler."""
    return sample(_modes(device), _POINTS, ODE(tolerance=1e-6), dtype=_F64)


def _mixture(name: str, sampler: Sampler, device: torch.device) -> list[Check]:
    model = _modes(device)
    x = sample(model, _POINTS, sampler, _MIXTURE_STEPS)
    if not sampler.is_stochastic:
        distance = float((x.double() - _exact(device)).square().mean().sqrt())
        return [
            below(GROUP, name, f"mixture, {_MIXTURE_STEPS} steps, rms", distance, 0.1 if sampler.order == 1 else 0.02)
        ]
    found, drawn = model.log_prob(x.double()), model.log_prob(model.draw(16 * _POINTS).double())
    error = math.hypot(float(found.std()) / math.sqrt(len(found)), float(drawn.std()) / math.sqrt(len(drawn)))
    what = f"mixture, {_MIXTURE_STEPS} steps, E log p in nats"
    return [within(GROUP, name, what, float(found.mean()), float(drawn.mean()), 0.1 + 4.0 * error)]
