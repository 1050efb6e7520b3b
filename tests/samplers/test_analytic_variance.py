"""Analytic-DPM: exact where the data are Gaussian, bounded elsewhere, estimated from samples."""

import math

import pytest
import torch
from laws import (
    F64,
    MEAN,
    SCHEDULES,
    STD,
    f64,
    gaussian,
    gaussian_law,
    log_snrs,
    mixture,
    name,
    seeded,
    times,
)

from diffusion import sample
from diffusion.denoisers import exact
from diffusion.errors import UserError
from diffusion.samplers import Ancestral, Moments, estimate_moments
from diffusion.samplers.affine_law import affine_law
from diffusion.schedules import VP

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def _exact_moments(levels):
    """Of N(MEAN, STD^2): E eps_hat^2 = sigma^2 / (alpha^2 STD^2 + sigma^2) = sigmoid(-(lambda + 2 log STD))."""
    return Moments(tuple(levels.tolist()), tuple(torch.sigmoid(-(levels + 2 * math.log(STD))).tolist()))


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_law_is_exact_for_gaussian_data_at_any_number_of_steps(schedule, steps):
    sampler = Ancestral("analytic", _exact_moments(log_snrs(schedule, 3)))
    grid = times(schedule, steps + 1, -8.0, 8.0)
    law = affine_law(sampler, gaussian(schedule), grid).push(*gaussian_law(schedule, grid[0]))
    torch.testing.assert_close(law, gaussian_law(schedule, grid[-1]), rtol=1e-5, atol=1e-9)


@every_schedule
def test_the_variance_lies_between_lower_and_upper(schedule):
    """For data narrower than N(0, 1); and below the bound from the range of the data where that is the smaller one."""
    grid = times(schedule, 12)
    lower, upper, analytic, bounded = (
        sampler.coefficients(schedule, grid[:-1], grid[1:]).fresh
        for sampler in (
            Ancestral("lower"),
            Ancestral("upper"),
            Ancestral("analytic", _exact_moments(log_snrs(schedule, 3))),
            Ancestral("analytic", Moments((-9.0, 9.0), (0.5, 0.5), error_bound=0.01)),
        )
    )
    assert (lower < analytic).all()
    assert (analytic < upper).all()
    from_x = Ancestral("lower").coefficients(schedule, grid[:-1], grid[1:]).from_x
    assert (bounded <= torch.sqrt(lower**2 + 0.01 * from_x**2) * (1 + 1e-9)).all()


def test_moments_are_kept_within_their_bounds():
    """An estimate outside (0, 1), as a network's error or chance make it, never takes variance away."""
    moments = Moments((-5.0, 0.0, 5.0), (1.05, 0.5, -0.01))
    t = times(VP(), 50)
    error = moments.denoising_error(VP(), t)
    assert (error >= 0).all()
    assert (error <= torch.exp(-VP().log_snr(t))).all()
    torch.testing.assert_close(moments.at(f64([0.0])), f64([0.5]))


def test_estimated_from_data():
    model = gaussian(VP())
    x = MEAN + STD * seeded(4000, 1)
    moments = estimate_moments(model, x, batch_size=999)
    expected = _exact_moments(f64(moments.log_snrs)).values
    for found, true in zip(moments.values, expected, strict=True):
        assert found == pytest.approx(true, rel=0.12)
    assert estimate_moments(model, x, batch_size=4000).values == pytest.approx(moments.values, rel=1e-9)


def test_estimated_moments_draw_the_data_in_few_steps():
    model = exact.Gaussian(f64([MEAN] * 32), f64([STD] * 32), VP())
    moments = estimate_moments(model, model.draw(64))
    for variance, options, low, high in (("analytic", {"moments": moments}, 0.96, 1.04), ("lower", {}, 0.0, 0.6)):
        x = sample(model, 200, sampler="ancestral", variance=variance, steps=6, dtype=F64, **options)
        assert low < float(x.std() / STD) < high


def test_what_is_refused():
    with pytest.raises(UserError, match="moments: variance 'analytic' needs"):
        sample(mixture(VP()), 2, sampler="ancestral", variance="analytic")
    with pytest.raises(UserError, match="only 'analytic' takes them"):
        Ancestral("lower", Moments((0.0, 1.0), (0.5, 0.4)))
    for levels in ((0.0,), (1.0, 0.0), (0.0, 0.0)):
        with pytest.raises(UserError, match="rising"):
            Moments(levels, (0.5,) * len(levels))
