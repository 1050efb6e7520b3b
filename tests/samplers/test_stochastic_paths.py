"""SDE samplers follow one Brownian path: the same seed at 20 and at 200 steps, path by path."""

from functools import lru_cache

import pytest
import torch
from laws import F64, FOUR_SCHEDULES, mixture, name, slope

from diffusion import sample
from diffusion.numerics.random import Noise
from diffusion.samplers import DPMSolverSDE, EulerMaruyama, ExponentialSDE, SASolver
from diffusion.schedules import VP

SAMPLES = 64
COUNTS = [20, 45, 90, 200]


def _ends(sampler, schedule, steps, keyed=True):
    """The states at log-SNR 3 of the same samples, from the same start at -4."""
    grid = schedule.inverse_log_snr(torch.linspace(-4.0, 3.0, steps + 1, dtype=F64))
    noise = Noise(0, torch.arange(SAMPLES), (2,), F64)
    alpha, sigma = schedule(grid[0])
    x = torch.hypot(alpha, sigma) * noise.initial()
    along = sampler.noise_along(noise, schedule, grid) if keyed else noise
    return sampler.sample(mixture(schedule), x, grid, along) / torch.hypot(*schedule(grid[-1]))


@lru_cache
def _reference(schedule):
    return _ends(DPMSolverSDE(1.0), schedule, 600)


def _errors(sampler, schedule, keyed=True):
    reference = _reference(schedule)
    return [float((_ends(sampler, schedule, n, keyed) - reference).abs().mean()) for n in COUNTS]


@pytest.mark.parametrize(
    "sampler",
    [ExponentialSDE(1.0, order=1), ExponentialSDE(1.0), DPMSolverSDE(1.0), SASolver(1.0), EulerMaruyama(1.0)],
    ids=name,
)
def test_strong_order(sampler):
    """1, which is what solvers that see no more of a step's noise than one number a draw can have."""
    errors = _errors(sampler, VP())
    assert slope(COUNTS, errors) == pytest.approx(1.0, abs=0.3), errors
    assert errors[-1] < 0.05


def test_noise_keyed_to_the_step_does_not_converge():
    """The test above can fail: with other noise for each grid, 200 steps are as far off as 20."""
    errors = _errors(ExponentialSDE(1.0, order=1), VP(), keyed=False)
    assert errors[-1] > 0.3


def test_the_public_call_follows_the_path():
    model = mixture(VP())
    few, more, many = (
        sample(model, 20, sampler="sde", order=1, steps=steps, dtype=F64, seed=3) for steps in (25, 75, 225)
    )
    assert float((more - many).abs().mean()) < 0.75 * float((few - many).abs().mean()) < 0.1
    in_parts = sample(model, 20, sampler="sde", order=1, steps=25, dtype=F64, seed=3, batch_size=7)
    torch.testing.assert_close(in_parts, few, rtol=1e-12, atol=1e-12)


def test_the_path_does_not_depend_on_the_schedule():
    """The same process on two paths, each with the noise that it makes for itself."""
    one, other = (_ends(ExponentialSDE(1.0), schedule, 30) for schedule in FOUR_SCHEDULES[:2])
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
