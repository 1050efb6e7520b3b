"""SDEdit: what the noise hides is drawn anew, and what it leaves is kept."""

import math

import pytest
import torch
from laws import F64

from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.numerics.random import Noise
from diffusion.samplers import DDIM, ODE, ExponentialSDE, SDEdit
from diffusion.samplers.sdedit import log_snr_of_strength
from diffusion.schedules import EDM, VP, time_grid

STD = 0.5


def drawn(schedule, inner, level, n=4000, x=None):
    model = Gaussian(torch.zeros(1, dtype=F64), STD, schedule)
    x = torch.tensor([0.8], dtype=F64) if x is None else x
    noise = Noise(0, torch.arange(n), (1,), F64)
    grid = time_grid(schedule, 60)
    sampler = SDEdit(x, level, inner)
    x_1 = noise.initial() * float(torch.hypot(*schedule(grid[0])))
    along = sampler.noise_along(noise, schedule, grid)
    return sampler.sample(model, x_1, grid, along)


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("level", [-2.0, 1.0])
def test_data_in_closed_form(schedule, level):
    """x_t = alpha x + sigma eps, and the flow of N(0, c^2) scales it by c / sqrt(alpha^2 c^2 + sigma^2)."""
    alpha, sigma = schedule(schedule.inverse_log_snr(torch.tensor(level, dtype=F64)))
    scale = STD / torch.sqrt((alpha * STD) ** 2 + sigma**2)
    x = drawn(schedule, ODE(tolerance=1e-5), level)
    assert abs(float(x.mean() - scale * alpha * 0.8)) < 4 * float(scale * sigma) / math.sqrt(len(x)) + 1e-3
    assert abs(float(x.std() / (scale * sigma)) - 1) < 0.05


def test_with_fresh_noise_the_law_is_that_of_the_posterior_given_x_t():
    """x given x_t has the weight w = alpha c^2 / (alpha^2 c^2 + sigma^2) on x_t, and x_t varies by sigma."""
    schedule, level = VP(), 0.0
    alpha, sigma = schedule(schedule.inverse_log_snr(torch.tensor(level, dtype=F64)))
    total = (alpha * STD) ** 2 + sigma**2
    weight = alpha * STD**2 / total
    variance = (weight * sigma) ** 2 + STD**2 * sigma**2 / total
    x = drawn(schedule, ExponentialSDE(), level)
    assert abs(float(x.mean() - weight * alpha * 0.8)) < 0.03
    assert abs(float(x.std() / variance.sqrt()) - 1) < 0.06


def test_only_the_steps_below_the_level_are_walked():
    schedule = VP()
    model = Gaussian(torch.zeros(1, dtype=F64), STD, schedule)
    grid = time_grid(schedule, 40)
    level = float(schedule.log_snr(grid[25]))
    with count_evaluations(model) as count:
        SDEdit(torch.zeros(1, dtype=F64), level, DDIM()).sample(model, torch.randn(2, 1, dtype=F64), grid)
    assert count.rows / 2 == 40 - 25


def test_a_level_beyond_the_data_end_gives_x_back():
    x = drawn(VP(), DDIM(), 50.0, n=3)
    assert float((x - 0.8).abs().max()) < 0.02


def test_half_the_strength_is_as_much_noise_as_signal():
    assert log_snr_of_strength(0.5) == pytest.approx(0.0, abs=1e-12)
    assert log_snr_of_strength(0.3) == pytest.approx(-log_snr_of_strength(0.7))
    for strength in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="strength: found"):
            log_snr_of_strength(strength)


def test_data_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"x: found shape \(3,\); the data have \(1,\)"):
        drawn(VP(), DDIM(), 0.0, n=2, x=torch.zeros(3, dtype=F64))
