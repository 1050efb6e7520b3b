"""Every schedule x prediction x sampler, against the exact answer.

The network is an oracle: it computes, from what a network is given (c_in x_t and c_noise), the raw output of a perfect
one. All the algebra around a network lies between it and the samples, whose law is known.
"""

from functools import lru_cache

import pytest
import torch
from laws import F64, MEAN, SCHEDULES, STD, by_turns, gaussian, gaussian_law, name
from torch import nn

from diffusion import samplers
from diffusion.config import PREDICTIONS
from diffusion.denoisers import NetworkDenoiser
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.preconditioning import c_in
from diffusion.denoisers.predictions import PathPoint
from diffusion.errors import UserError
from diffusion.numerics.random import Noise
from diffusion.samplers import (
    ABM,
    DDIM,
    DEIS,
    ODE,
    Adams,
    AdaptiveSDE,
    Ancestral,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverSDE,
    Euler,
    EulerMaruyama,
    ExponentialSDE,
    Heun,
    PredictorCorrector,
    SASolver,
    UniPC,
)
from diffusion.samplers.affine_law import affine_law
from diffusion.sampling.sample import sample
from diffusion.schedules import time_grid

SIGMA_DATA = 0.8
KINDS = list({type(schedule): schedule for schedule in reversed(SCHEDULES)}.values())
# Every class; the methods of ODE share one path to the denoiser, and their orders are measured in test_order.py.
SAMPLERS = [
    ODE("heun2"),
    ODE("dopri5"),
    DDIM(),
    DDIM(1.0),
    Ancestral("lower"),
    Ancestral("upper"),
    ExponentialSDE(1.0, order=1),
    ExponentialSDE(1.0),
    DPMSolverSDE(1.0),
    SASolver(1.0),
    EulerMaruyama(1.0),
    Euler(),
    Heun(),
    DPMSolver2(),
    DPMSolver3(),
    DPMSolverPP2M(),
    DPMSolverPP3M(),
    UniPC(),
    DEIS(),
    Adams(),
    ABM(),
]


def in_parts(every):
    """The samplers that a test takes are those of a part; the first is quick, and the slow tests take the others."""
    more = [pytest.param(part, marks=pytest.mark.slow) for part in range(1, every)]
    return pytest.mark.parametrize("part", [0, *more])


# Of the triples each sixth, by turns, in which each sampler meets every schedule and every prediction: the algebra of a
# network's output knows the prediction and the schedule, and has no memory of the solver.
by_sixths = in_parts(len(PREDICTIONS))

# Those whose steps depend on the state in other ways: their law is measured.
NOT_LINEAR = [PredictorCorrector(), AdaptiveSDE(tolerance=0.5)]


class Oracle(nn.Module):
    """The network of a perfect model of N(MEAN, STD^2), float64."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.exact = gaussian(schedule)
        self.anchor = nn.Parameter(torch.zeros(1000, dtype=F64))  # a network's dtype is that of most of its parameters
        self.outer = [NetworkDenoiser(nn.Identity(), schedule, prediction, (1,), sigma_data=SIGMA_DATA)]

    def forward(self, x, c_noise, labels):
        t = self.exact.schedule.inverse_log_snr(4.0 * c_noise)
        at = PathPoint(self.exact.schedule, t, x)
        x_t = x / c_in(at, SIGMA_DATA)
        return self.outer[0].x_to_raw(self.exact(x_t, t), x_t, at)


def chosen(some, every, part, schedule, prediction=None):
    """Each `every`-th sampler, for a schedule and a prediction."""
    return some[(KINDS.index(schedule) + [None, *PREDICTIONS].index(prediction) + part) % every :: every]


def _law(sampler, model, steps):
    """Mean and variance of the samples, from the exact law at the start of the path."""
    # The end of the path has a noise of 1/36 of the data's deviation.
    grid = time_grid(model.schedule, steps, log_snr_end=9.0)
    return affine_law(sampler, model, grid).push(*gaussian_law(model.schedule, grid[0]))


@lru_cache
def _law_of_the_exact_denoiser(sampler, schedule, steps):
    return _law(sampler, gaussian(schedule), steps)


def _start_and_noise(schedule, steps, rows):
    """A grid, and a start in the law of the path there: 128 independent numbers a row."""
    grid, noise = time_grid(schedule, steps, log_snr_end=9.0), Noise(0, torch.arange(rows), (128,), F64)
    mean, variance = gaussian_law(schedule, grid[0])
    return mean + variance.sqrt() * noise.initial(), grid, noise


def test_the_table_holds_every_sampler():
    named = {type(samplers.build(name)) for name in samplers.names()}
    assert {type(sampler) for sampler in (*SAMPLERS, *NOT_LINEAR)} == named


@in_parts(3)
@pytest.mark.parametrize("schedule", KINDS, ids=name)
def test_every_sampler_draws_the_data(schedule, part):
    for sampler in chosen(SAMPLERS, 3, part, schedule):
        mean, variance = _law(sampler, gaussian(schedule), 36 if sampler.order == 1 else 26)
        off = 0.2 if sampler.order == 1 else 0.08 if sampler.is_stochastic else 0.04
        off = 0.02 if isinstance(sampler, ODE) and sampler.order > 1 else off
        assert float((mean - MEAN) / STD) == pytest.approx(0.0, abs=off), sampler
        assert float(variance.sqrt() / STD) == pytest.approx(1.0, abs=off), sampler


@by_sixths
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", KINDS, ids=name)
def test_of_every_prediction_they_draw_the_same(schedule, prediction, part):
    """To the last digits, on a grid of few times over the whole path, as long as any sampler's memory."""
    model = NetworkDenoiser(Oracle(schedule, prediction), schedule, prediction, (1,), sigma_data=SIGMA_DATA)
    given = _start_and_noise(schedule, 5, 2)
    with torch.no_grad():
        for sampler in chosen(SAMPLERS, 6, part, schedule, prediction):
            closed = _law_of_the_exact_denoiser(sampler, schedule, 5)
            torch.testing.assert_close(_law(sampler, model, 5), closed, rtol=1e-6, atol=1e-7)
        for sampler in chosen(NOT_LINEAR, 6, part, schedule, prediction):
            x, closed = (sampler.sample(denoiser, *given) for denoiser in (model, gaussian(schedule)))
            torch.testing.assert_close(x, closed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "schedule"), by_turns([PredictorCorrector(), AdaptiveSDE(tolerance=0.02)], KINDS), ids=name
)
def test_samplers_that_are_not_linear_draw_the_data(sampler, schedule):
    """2560 numbers: the standard errors of the mean and of the deviation are 2 % and 1.4 %; three of them, and 1 %."""
    x = sampler.sample(gaussian(schedule), *_start_and_noise(schedule, 96, 20))
    assert float((x.mean() - MEAN) / STD) == pytest.approx(0.0, abs=0.07)
    assert float(x.std() / STD) == pytest.approx(1.0, abs=0.05)


@by_sixths
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", KINDS, ids=name)
def test_one_step_is_one_evaluation(schedule, prediction, part):
    """x = E[x | x_t], whatever the sampler, from the start of the path and from anywhere on it."""
    model = NetworkDenoiser(Oracle(schedule, prediction), schedule, prediction, (1,), sigma_data=SIGMA_DATA)
    middle = float(schedule.inverse_log_snr(torch.tensor(0.3, dtype=F64)))
    for start in (schedule.t_max, middle):
        t = torch.tensor(start, dtype=F64)
        with torch.no_grad():
            x_t = torch.linspace(-2, 2, 5, dtype=F64)[:, None] * float(torch.hypot(*schedule(t)))
            expected = model(x_t, t)
        for sampler in chosen([*SAMPLERS, *NOT_LINEAR], 6, part, schedule, prediction):
            with count_evaluations(model) as counter:
                x = sample(model, 5, sampler, grid=[start, 0.0], noise=x_t)
            assert counter.rows == 5, sampler
            torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12, msg=lambda m, s=sampler: f"{s}: {m}")
            if start == schedule.t_max:
                assert torch.equal(sample(model, 5, sampler, steps=1, noise=x_t), x), sampler


@pytest.mark.parametrize("schedule", KINDS, ids=name)
def test_one_step_that_stops_before_clean_data(schedule):
    """A grid of two times, the last not 0: short enough, the law at its end is the path's."""
    model = gaussian(schedule)
    t, s = schedule.inverse_log_snr(torch.tensor([0.0, 0.02], dtype=F64))
    mean, variance = gaussian_law(schedule, s)
    for sampler in SAMPLERS:
        got = affine_law(sampler, model, torch.stack((t, s))).push(*gaussian_law(schedule, t))
        torch.testing.assert_close(got, (mean, variance), rtol=2e-3, atol=1e-4, msg=lambda m, s=sampler: f"{s}: {m}")
    for sampler in NOT_LINEAR:
        x = sample(model, 4, sampler, grid=[float(t), float(s)])
        assert torch.isfinite(x).all(), sampler


@pytest.mark.parametrize("sampler", [*SAMPLERS, *NOT_LINEAR], ids=name)
def test_grids_that_are_none(sampler):
    model = gaussian(KINDS[0])
    for grid in ([], [0.5], [0.0], [[1.0, 0.0]], [0.0, 1.0], [1.0, float("nan"), 0.0], ["a", "b"], [2.0, 0.0]):
        with pytest.raises(UserError, match=r"^grid: "):
            sample(model, 2, sampler, grid=grid)
