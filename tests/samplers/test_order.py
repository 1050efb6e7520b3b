"""The declared order of every sampler, measured: of the trajectory, or of the law where it draws noise.

No Monte Carlo: the law of a linear sampler on Gaussian data is read off its public interface and propagated exactly.
"""

import pytest
import torch
from laws import (
    FIXED_STEP,
    FOUR_SCHEDULES,
    NOISELESS_SDE,
    SCHEDULES,
    STOCHASTIC,
    affine_law,
    f64,
    gaussian,
    gaussian_law,
    name,
    probability_flow,
    reverse_law,
    slope,
    times,
)

from diffusion import sde
from diffusion.samplers import Ancestral, EulerMaruyama, ExponentialSDE
from diffusion.schedules import time_grid
from diffusion.schedules.forward_process import posterior

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
four_schedules = pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
STEPS = [16, 32, 64, 128]


@four_schedules
@pytest.mark.parametrize("sampler", FIXED_STEP + NOISELESS_SDE, ids=name)
def test_order_of_the_trajectory(sampler, schedule):
    assert not sampler.is_stochastic
    denoiser, errors = gaussian(schedule), []
    for steps in STEPS:
        grid = times(schedule, steps + 1, -3.0, 3.0)
        mean, variance = gaussian_law(schedule, grid[0])
        x_1 = (mean + variance.sqrt() * f64([-1.5, 0.3, 2.0]))[:, None]
        exact = probability_flow(schedule, x_1, grid[0], grid[-1])
        errors.append(float((sampler.sample(denoiser, x_1, grid) - exact).abs().max()))
    assert slope(STEPS, errors) == pytest.approx(sampler.order, abs=0.35), errors


@every_schedule
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_order_of_the_law(sampler, schedule):
    """From a law that is not the path's own, so that the contraction towards the path is measured, too."""
    assert sampler.is_stochastic
    eta = getattr(sampler, "eta", 1.0)  # ancestral sampling is eta = 1
    denoiser, of_mean, of_variance = gaussian(schedule), [], []
    for steps in STEPS:
        grid = times(schedule, steps + 1, -3.0, 1.0)
        mean, variance = gaussian_law(schedule, grid[0])
        start = mean + 3 * variance.sqrt(), 0.1 * variance
        law = affine_law(sampler, denoiser, grid).push(*start)
        exact = reverse_law(eta, schedule, grid[0], grid[-1], *start)
        of_mean.append(float((law[0] - exact[0]).abs() / exact[1].sqrt()))
        of_variance.append(float((law[1] / exact[1] - 1).abs()))
    assert slope(STEPS, of_variance) == pytest.approx(sampler.order, abs=0.35), of_variance
    if max(of_mean) > 1e-12:  # with eta = 1 the exponential step has no error in the mean of Gaussian data
        assert slope(STEPS, of_mean) == pytest.approx(sampler.order, abs=0.35), of_mean
    else:
        assert eta == 1.0


@four_schedules
def test_the_exact_reverse_law_by_quadrature_of_the_sde(schedule):
    """The closed form that the orders are measured against: drift and diffusion integrated by brute force."""
    denoiser, eta = gaussian(schedule), 0.6
    grid = times(schedule, 1001, -3.0, 1.0)
    mean, variance = gaussian_law(schedule, grid[0])
    start = mean + 3 * variance.sqrt(), 0.1 * variance
    t = 0.5 * (grid[1:] + grid[:-1])
    at = torch.stack((torch.zeros_like(t), torch.ones_like(t)), dim=1).reshape(-1, 1)
    drift = sde.reverse_drift(denoiser, at, t.repeat_interleave(2), eta).reshape(-1, 2)
    offsets, rates = drift[:, 0], drift[:, 1] - drift[:, 0]
    g2 = sde.diffusion_squared(schedule, t)
    m, v = start
    for offset, rate, noise, dt in zip(offsets, rates, eta**2 * g2, grid.diff(), strict=True):
        gain = torch.exp(rate * dt)
        m = gain * m + offset * torch.expm1(rate * dt) / rate
        v = gain**2 * v - noise * torch.expm1(2 * rate * dt) / (2 * rate)
    exact = reverse_law(eta, schedule, grid[0], grid[-1], *start)
    torch.testing.assert_close((m, v), exact, rtol=2e-4, atol=2e-4)


@four_schedules
def test_large_eta_in_few_steps(schedule):
    """The exponential step never exceeds the path's deviation and closes in on it; explicit Euler blows up."""
    deviations = {}
    for kind in (ExponentialSDE, EulerMaruyama):
        for steps in (10, 40, 160):
            grid = time_grid(schedule, steps)[:-1]
            mean, variance = gaussian_law(schedule, grid[-1])
            m, v = affine_law(kind(2.0), gaussian(schedule), grid).push(*gaussian_law(schedule, grid[0]))
            deviations[kind, steps] = float((v / variance).sqrt())
            if kind is ExponentialSDE:
                assert float((m - mean).abs() / variance.sqrt()) < 1e-6
    few, more, many = (deviations[ExponentialSDE, steps] for steps in (10, 40, 160))
    assert 0.5 < few < more < many < 1.0
    assert more > 0.75
    assert many > 0.9
    assert deviations[EulerMaruyama, 10] > 10


@every_schedule
def test_the_two_variances_of_ancestral_sampling_enclose_the_truth(schedule):
    """A step's exact variance p(x_s | x_t), for data narrower than N(0, 1), lies between lower and upper."""
    grid = times(schedule, 12)
    t, s = grid[:-1], grid[1:]
    lower = Ancestral("lower").coefficients(schedule, t, s).fresh ** 2
    upper = Ancestral("upper").coefficients(schedule, t, s).fresh ** 2
    (_, v_t), (_, v_s) = gaussian_law(schedule, t), gaussian_law(schedule, s)
    exact = v_s - (schedule(t)[0] / schedule(s)[0] * v_s) ** 2 / v_t
    assert (lower < exact).all()
    assert (exact < upper).all()
    torch.testing.assert_close(lower, posterior(schedule, t, s).variance, rtol=1e-12, atol=0)
