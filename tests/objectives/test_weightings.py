"""A weighting is a density over log-SNR, and weighs as its paper says.

The references integrate over time (or over sigma) what the paper writes down, with the derivatives of alpha and sigma
by autograd, and never look at a density over log-SNR.
"""

import laws
import pytest
import torch
from torch import Tensor

from diffusion.config import WEIGHTINGS
from diffusion.errors import UserError
from diffusion.objectives import weighting
from diffusion.schedules.schedule import log_snr_ends

SCHEDULES = pytest.mark.parametrize("schedule", laws.SCHEDULES, ids=laws.name)
FIXED_SCHEDULES = pytest.mark.parametrize("schedule", laws.FIXED_SCHEDULES, ids=laws.name)

# Functions of log-SNR that tell weightings apart, in place of the error of a network.
ERRORS = [torch.sigmoid, lambda log_snr: torch.exp(-(((log_snr - 3.0) / 4.0) ** 2))]


def intervals(schedule, count=40_000) -> tuple[Tensor, Tensor]:
    """The middles and lengths of time intervals that cover the path, fine where log-SNR changes fast."""
    t = schedule.inverse_log_snr(laws.log_snrs(schedule, count + 1)).flip(0)
    t[0], t[-1] = schedule.t_min, schedule.t_max
    return (t[1:] + t[:-1]) / 2, t.diff()


def weighed(name, schedule, error, **options) -> float:
    """The integral of w(lambda) error(lambda), by the midpoint rule."""
    low, high = log_snr_ends(schedule)
    count = 40_000
    log_snr = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return float((weighting(name, schedule, **options)(log_snr) * error(log_snr)).mean()) * (high - low)


@FIXED_SCHEDULES
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_integrates_to_one_over_the_path(name, schedule):
    assert weighed(name, schedule, torch.ones_like) == pytest.approx(1.0, abs=1e-3)


@FIXED_SCHEDULES
def test_simple_is_the_noise_error_at_uniform_times(schedule):
    t, dt = intervals(schedule)
    for error in ERRORS:
        expected = float((error(schedule.log_snr(t)) * dt).sum() / dt.sum())
        assert weighed("simple", schedule, error) == pytest.approx(expected, rel=2e-3)


@SCHEDULES
def test_likelihood_is_the_score_error_times_g_squared(schedule):
    t, dt = intervals(schedule)
    _, sigma = schedule(t)
    # g^2 = d sigma^2 / dt - 2 (d log alpha / dt) sigma^2; the score's error is the noise's, divided by sigma^2
    growth = laws.autograd_derivative(lambda t: schedule(t)[1] ** 2, t)
    drift = laws.autograd_derivative(lambda t: schedule(t)[0].log(), t)
    weight = (growth - 2 * drift * sigma**2) / sigma**2 * dt
    for error in ERRORS:
        expected = float((error(schedule.log_snr(t)) * weight).sum() / weight.sum())
        assert weighed("likelihood", schedule, error) == pytest.approx(expected, rel=2e-3)
        assert weighed("elbo", schedule, error) == pytest.approx(expected, rel=2e-3)


@FIXED_SCHEDULES
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_caps_the_weight_of_the_error_of_x(schedule, gamma):
    t, dt = intervals(schedule)
    alpha, sigma = schedule(t)
    snr = alpha**2 / sigma**2
    for error in ERRORS:
        # min(SNR, gamma) on the error of x, which is the noise's divided by the SNR (arXiv 2303.09556, sec. 3.4)
        expected = (snr.clamp(max=gamma) * error(schedule.log_snr(t)) / snr * dt).sum()
        total = (snr.clamp(max=gamma) / snr * dt).sum()
        measured = weighed("min-snr", schedule, error, min_snr_gamma=gamma)
        assert measured == pytest.approx(float(expected / total), rel=2e-3)


@FIXED_SCHEDULES
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_its_lambda_of_sigma_at_log_normal_sigmas(schedule, sigma_data):
    low, high = log_snr_ends(schedule)
    log_sigma = torch.linspace(-high / 2, -low / 2, 40_001, dtype=torch.float64)  # of sigma / alpha, EDM's sigma
    sigma = log_sigma.exp()
    density = torch.exp(-0.5 * ((log_sigma + 1.2) / 1.2) ** 2)
    # lambda(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 on ||D - x||^2 = sigma^2 ||eps - eps_hat||^2 (Karras, table 1)
    weight = density * (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * sigma**2
    for error in ERRORS:
        expected = float((weight * error(-2 * log_sigma)).sum() / weight.sum())
        assert weighed("edm", schedule, error, sigma_data=sigma_data) == pytest.approx(expected, rel=2e-3)


@SCHEDULES
def test_the_density_of_uniform_times_is_that_of_their_histogram(schedule):
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 1e5
    log_snr = schedule.log_snr(t)
    edges = laws.log_snrs(schedule, 13)
    counts = torch.histogram(log_snr, edges.contiguous()).hist / len(t)
    fine = laws.log_snrs(schedule, 12 * 2000 + 1)
    density = schedule.time_density(fine)
    mass = torch.stack([torch.trapezoid(part, x) for part, x in _pieces(density, fine)])
    assert torch.allclose(counts, mass, atol=2e-4), (counts, mass)


def _pieces(density, x, count=12, size=2000):
    return [(density[i * size : (i + 1) * size + 1], x[i * size : (i + 1) * size + 1]) for i in range(count)]


def test_an_unknown_weighting_is_refused():
    with pytest.raises(UserError, match=r"objective\.weighting: 'elbw'.*Did you mean 'elbo'"):
        weighting("elbw", laws.SCHEDULES[0])


def test_a_weight_that_integrates_to_nothing_finite_is_refused():
    with pytest.raises(UserError, match=r"objective.weighting: 'edm' has no integral over the path"):
        weighting("edm", laws.SCHEDULES[0], sigma_data=1e-200)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "a"])
def test_a_scale_that_is_no_positive_number_is_refused(value):
    with pytest.raises(UserError, match="min_snr_gamma"):
        weighting("min-snr", laws.SCHEDULES[0], min_snr_gamma=value)
    with pytest.raises(UserError, match="sigma_data"):
        weighting("edm", laws.SCHEDULES[0], sigma_data=value)


@pytest.mark.parametrize("name", ["simple", "min-snr", "edm"])
def test_a_learned_schedule_takes_the_bound_only(name):
    with pytest.raises(UserError, match=rf"objective\.weighting: found '{name}'; a learned schedule takes elbo or"):
        weighting(name, laws.learned())
