"""Truncated-normal and importance-weighted dequantisation against SciPy, closed forms and the probability of levels."""

import math

import pytest
import torch
from laws import f64, seeded
from scipy.stats import truncnorm

from diffusion.denoisers.exact import Empirical, Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer, log_likelihood_ode
from diffusion.schedules import VE, VP

LEVELS = [2, 17, 256]


def quantiles(count):
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]


def noise_left(schedule):
    """The deviation of the noise that t_min leaves in the data."""
    return float(torch.exp(-0.5 * schedule.log_snr(f64(schedule.t_min))))


def level_mass(model, dequantizer, images):
    """log P of each image: the mass of its bin under a Gaussian with t_min's noise in it."""
    law = torch.distributions.Normal(model.mean, (model.std**2 + noise_left(model.schedule) ** 2).sqrt())
    low = dequantizer.low + dequantizer.width * images.double()
    return (law.cdf(low + dequantizer.width) - law.cdf(low)).log().sum(1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.05, 3.0])
def test_the_law_of_the_draws(levels, std):
    dequantizer, u = Dequantizer(levels), quantiles(4000)
    images = torch.full((4000, 1), levels - 1, dtype=torch.uint8)
    x, log_q = dequantizer.dequantize_truncated_normal(images, u, std)
    center, half = float(dequantizer.center(images[:1], torch.float64)), dequantizer.width / 2
    assert float((x - center).abs().max()) < half
    reference = truncnorm(-half / std, half / std, loc=center, scale=std)
    torch.testing.assert_close(x.flatten(), torch.from_numpy(reference.ppf(u.flatten().numpy())), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(log_q, torch.from_numpy(reference.logpdf(x.flatten().numpy())), rtol=1e-6, atol=1e-6)
    tau = half / std
    mass = math.erf(tau / math.sqrt(2))
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2) + math.log(mass)
    entropy -= tau * math.exp(-0.5 * tau**2) / (math.sqrt(2 * math.pi) * mass)
    assert float(-log_q.mean()) == pytest.approx(entropy, abs=2e-3)


def test_log_q_adds_up_over_pixels_and_is_uniform_in_the_limit():
    dequantizer = Dequantizer(17)
    images = (torch.arange(24).reshape(2, 3, 2, 2) % 17).to(torch.uint8)
    u = torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, log_q = dequantizer.dequantize_truncated_normal(images, u, 0.02)
    _, parts = dequantizer.dequantize_truncated_normal(images.reshape(24, 1), u.reshape(24, 1), 0.02)
    torch.testing.assert_close(log_q, parts.reshape(2, 12).sum(1))
    x, log_q = dequantizer.dequantize_truncated_normal(images, u, 1e4)
    torch.testing.assert_close(x, dequantizer.dequantize(images, u))
    torch.testing.assert_close(log_q, torch.full((2,), -dequantizer.log_jacobian(12)).double())


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dequantization", ["uniform", "truncated-normal"])
def test_bounds_of_a_gaussian(levels, dequantization):
    """The mean of the log-weights meets its quadrature and lies below log P, to which the weighted draws tend."""
    schedule = VE(sigma_min=0.3)  # so much noise at t_min that truncated-normal draws reach all of the bin
    model, noise = Gaussian(f64([0.2, -0.3]), f64([0.5, 0.4]), schedule), noise_left(schedule)
    dequantizer = Dequantizer(levels)
    images = dequantizer.quantize(model.draw(12, seed=2))
    mass = level_mass(model, dequantizer, images)
    options: dict = {"draws": 48, "trace": "exact", "dequantization": dequantization, "tolerance": 1e-5}
    mean = log_likelihood_ode(model, dequantizer, images, **options)
    u = quantiles(400)
    truth = torch.zeros(12, dtype=torch.float64)
    std = (model.std**2 + noise**2).sqrt()
    for pixel in range(2):
        repeated = images[:, pixel].repeat_interleave(400)[:, None]
        if dequantization == "uniform":
            points, log_q = dequantizer.dequantize(repeated, u.repeat(12, 1)), -math.log(dequantizer.width)
        else:
            points, log_q = dequantizer.dequantize_truncated_normal(repeated, u.repeat(12, 1), noise)
        log_p = torch.distributions.Normal(model.mean[pixel], std[pixel]).log_prob(points[:, 0])
        truth += (log_p - log_q).reshape(12, 400).mean(1)
    assert bool((truth < mass + 1e-9).all())  # at 256 levels the gap is down to rounding
    assert bool(((mean.log_prob - truth).abs() < 5 * mean.std_error + 2e-3).all())
    assert mean.kind == "lower bound"
    assert mean.protocol["dequantization"] == dequantization
    weighted = log_likelihood_ode(model, dequantizer, images, importance_weighted=True, **options)
    assert bool(((weighted.log_prob - mass).abs() < 5 * weighted.std_error + 2e-3).all())
    assert weighted.kind == "lower bound"
    assert weighted.protocol["importance_weighted"] is True
    assert mean.error_budget["draws"] > 0
    assert weighted.error_budget["draws"] > 0


def test_weighted_bound_rises_with_the_draws_to_the_probability_of_the_level():
    """On average over 600 repeats, and not above log P: what a missing - log K would do."""
    model, dequantizer = Gaussian(f64([0.2, -0.3]), f64([0.25, 0.2]), VP()), Dequantizer(2)
    images = torch.tensor([[1, 0]], dtype=torch.uint8)
    mass = float(level_mass(model, dequantizer, images))
    bounds, errors = [], []
    for draws in (1, 4, 16):
        estimate = log_likelihood_ode(
            model,
            dequantizer,
            images.expand(600, -1).contiguous(),
            draws,
            importance_weighted=True,
            trace="exact",
            method="rk4",
            steps=20,
            batch_size=10_000,
        )
        bounds.append(float(estimate.log_prob.mean()))
        errors.append(float(estimate.log_prob.std()) / 600**0.5)
    assert bounds[0] + 4 * errors[0] < bounds[1]
    assert bounds[1] + 4 * errors[1] < bounds[2]
    assert bounds[2] < mass + 4 * errors[2]
    assert bounds[2] > mass - 0.1


def test_one_weighted_draw_is_the_plain_one():
    model, dequantizer = Gaussian(f64([0.2, -0.3]), f64([0.5, 0.4]), VP()), Dequantizer(17)
    images = dequantizer.quantize(model.draw(4, seed=2))
    plain = log_likelihood_ode(model, dequantizer, images, trace="exact")
    weighted = log_likelihood_ode(model, dequantizer, images, trace="exact", importance_weighted=True)
    torch.testing.assert_close(plain.log_prob, weighted.log_prob)
    assert bool(weighted.std_error.isnan().all())


def test_noise_of_the_trace_makes_weighted_draws_a_surrogate():
    model = GaussianMixture(0.5 * seeded(3, 4), f64([0.3, 0.4, 0.5]), VP())
    dequantizer = Dequantizer(17)
    images = dequantizer.quantize(model.draw(4, seed=2))
    options: dict = {"draws": 3, "probes": 2, "tolerance": 1e-3}
    weighted = log_likelihood_ode(model, dequantizer, images, importance_weighted=True, **options)
    assert weighted.kind == "surrogate"
    assert weighted.error_budget["probes"] > 0
    assert log_likelihood_ode(model, dequantizer, images, **options).kind == "lower bound"


@pytest.mark.parametrize(("levels", "schedule"), [(256, VP()), (17, VE(sigma_min=0.02))], ids=["256", "17"])
def test_images_at_the_centres_of_their_bins(levels, schedule):
    """N images at their centres: log P = -log N, which truncated-normal meets and uniform misses by nats."""
    dequantizer = Dequantizer(levels)
    images = torch.tensor([[3, 9], [9, 3], [14, 14], [0, 16]], dtype=torch.uint8) * (levels // 17)
    images = images.clamp(max=levels - 1)
    model = Empirical(dequantizer.center(images, torch.float64), schedule)
    options: dict = {"draws": 32, "trace": "exact", "tolerance": 1e-5}
    truncated = log_likelihood_ode(model, dequantizer, images, dequantization="truncated-normal", **options)
    uniform = log_likelihood_ode(model, dequantizer, images, **options)
    assert bool((truncated.log_prob < -math.log(4) + 2e-3).all())
    assert bool((truncated.log_prob > -math.log(4) - 0.02).all())
    assert float(uniform.log_prob.mean()) < -math.log(4) - 1.0


def test_narrow_modes_away_from_the_centres():
    """A valid bound, not only a tight one: modes of deviation w / 4, a quarter of a bin off the centre."""
    dequantizer = Dequantizer(17)
    images = torch.tensor([[5], [11]], dtype=torch.uint8)
    w = dequantizer.width
    means = dequantizer.center(images, torch.float64) + 0.25 * w
    model = GaussianMixture(means, f64([0.25 * w, 0.25 * w]), VE(sigma_min=0.2 * w))
    std = math.hypot(0.25 * w, 0.2 * w)
    law = torch.distributions.Normal(f64(0.0), f64(std))
    mass = float((0.5 * (law.cdf(f64(0.25 * w)) - law.cdf(f64(-0.75 * w)))).log())
    for kind in ("uniform", "truncated-normal"):
        estimate = log_likelihood_ode(model, dequantizer, images, 200, dequantization=kind, tolerance=1e-4)
        assert bool((estimate.log_prob < mass).all())
        assert bool((estimate.log_prob > mass - 1.0).all())


def test_errors():
    model, images = Gaussian(f64([0.2, -0.3]), f64([0.5, 0.4]), VP()), torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(UserError, match="Did you mean 'truncated-normal'"):
        log_likelihood_ode(model, Dequantizer(17), images, dequantization="truncated_normal")
    with pytest.raises(UserError, match="found level 20"):
        Dequantizer(17).dequantize_truncated_normal(images + 20, torch.full((2, 2), 0.5).double(), 0.1)
