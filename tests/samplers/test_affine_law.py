"""The exact laws of Gaussian data, against a tight solve and against quadrature."""

import pytest
import torch
from laws import MEAN, f64, gaussian, name, seeded

from diffusion.samplers import ODE, Ancestral, PredictorCorrector
from diffusion.samplers.affine_law import affine_law
from diffusion.schedules import EDM, VP, Cosine
from diffusion.schedules.time_grids import time_grid


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=name)
def test_the_closed_form_is_the_probability_flow(schedule):
    model = gaussian(schedule)
    grid = schedule.inverse_log_snr(f64([-4.0, 4.0]))
    x_1 = model.law_at(grid[0])[1].sqrt() * seeded(5, 1)
    tight = ODE("dopri8", 1e-10, 50_000).sample(model, x_1, grid)
    torch.testing.assert_close(model.flow(x_1, grid[0], grid[1]), tight, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Cosine()], ids=name)
def test_the_law_of_x_t_is_that_of_its_density(schedule):
    model = gaussian(schedule)
    for t in schedule.inverse_log_snr(f64([-3.0, 0.0, 5.0])):
        mean, variance = model.law_at(t)
        x = torch.linspace(-12.0, 12.0, 40_001, dtype=torch.float64)[:, None] * variance.sqrt() + mean
        density = model.log_prob_at(x, t).exp()[:, None]
        torch.testing.assert_close(torch.trapezoid(x * density, x, dim=0), mean, rtol=1e-9, atol=1e-9)
        spread = torch.trapezoid((x - mean).square() * density, x, dim=0)
        torch.testing.assert_close(spread, variance, rtol=1e-9, atol=0.0)
        assert float(mean) == pytest.approx(float(schedule(t)[0]) * MEAN, rel=1e-12)


def test_a_sampler_that_is_not_affine_has_a_residual():
    model, grid = gaussian(VP()), time_grid(VP(), 10)[:-1]
    assert affine_law(Ancestral(), model, grid).residual < 1e-12
    assert affine_law(PredictorCorrector(), model, grid).residual > 1e-3
