"""Log-likelihoods from denoising errors against closed forms: on every path, in vectors and images, with errors."""

import math

import pytest
import torch
from laws import f64, name, seeded

import diffusion
from diffusion.denoisers import Clipped
from diffusion.denoisers.exact import Empirical, Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer, elbo_continuous, log_density, log_density_immse, log_likelihood_immse
from diffusion.likelihood.gaussian_reference import coefficient, noise_levels
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Rectified, SubVP

SCHEDULES = [VP(), SubVP(), Cosine(), Rectified(), VE(), EDM(), DDPM()]


def plane(std, schedule):
    return GaussianMixture(0.6 * seeded(5, 2), torch.full((5,), std).double(), schedule)


def image_mixture(std, schedule):
    return GaussianMixture(0.5 * seeded(4, 3, 8, 8), torch.full((4,), std).double(), schedule)


def mean_gap(estimate, truth):
    """The mean error and its standard error, from the spread over data."""
    gap = estimate.log_prob - truth
    return float(gap.mean()), float(gap.std()) / len(gap) ** 0.5


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_exact_log_density_on_every_path(schedule):
    """Unbiased within the noise and the stated ends, for a Gaussian of mean not 0 and for a mixture."""
    for model in (Gaussian(f64([0.3, -0.5, 0.1]), f64([0.5, 0.1, 1.3]), schedule), plane(0.3, schedule)):
        x = model.draw(300, seed=1)
        estimate = log_density_immse(model, x, evaluations=64)
        ends = estimate.systematic_error * estimate.nats_per_bit_per_dim
        gap, error = mean_gap(estimate, model.log_prob(x))
        assert abs(gap) < 4 * error + ends
        assert ends < 0.03
        said = estimate.std_error.square().mean()
        assert 0.7 < float((estimate.log_prob - model.log_prob(x)).square().mean() / said) < 1.6
        assert estimate.kind == "unbiased"
        assert estimate.nfe == 64
        assert estimate.levels is None
        torch.testing.assert_close(sum(estimate.terms.values()), estimate.log_prob)


@pytest.mark.parametrize(
    ("model", "bits"),
    [(image_mixture(0.2, VP()), 0.04), (image_mixture(0.08, EDM()), 0.05), (image_mixture(0.2, Rectified()), 0.04)],
    ids=["vp", "edm", "rectified"],
)
def test_images(model, bits):
    x = model.draw(48, seed=1)
    estimate = log_density_immse(model, x, evaluations=96)
    gap, error = mean_gap(estimate, model.log_prob(x))
    assert abs(gap) < 4 * error + estimate.systematic_error * estimate.nats_per_bit_per_dim
    assert float((estimate.bits_per_dim + model.log_prob(x) / estimate.nats_per_bit_per_dim).std()) < bits
    assert estimate.dims == 192


@pytest.mark.parametrize("model", [plane(0.3, VP()), image_mixture(0.2, Cosine())], ids=["plane", "image"])
def test_intervals_cover_the_truth(model):
    """100 repeats of the mean over 16 data: the budget covers the truth in 90 of them or more."""
    data = model.draw(16, seed=3)
    truth = model.log_prob(data)
    keys = torch.arange(1600)
    repeats = log_density_immse(model, data.repeat(100, *(1,) * (data.ndim - 1)), evaluations=32, indices=keys)
    gap = (repeats.log_prob - truth.repeat(100)).reshape(100, 16).mean(1)
    errors = repeats.std_error.reshape(100, 16).square().sum(1).sqrt() / 16
    ends = repeats.systematic_error * repeats.nats_per_bit_per_dim
    covered = (gap.abs() <= 1.96 * errors + ends).double().mean()
    assert float(covered) >= 0.90
    assert float(errors.mean()) < 1.4 * float(gap.std())  # and not by being too wide


def test_agrees_with_the_probability_flow():
    model = plane(0.3, Cosine())
    x = model.draw(200, seed=2)
    ode, immse = log_density(model, x), diffusion.log_density(model, x, method="immse", evaluations=128)
    gap = immse.log_prob - ode.log_prob
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 200**0.5
    assert float(gap.square().mean().sqrt()) < 1.3 * float(immse.std_error.square().mean().sqrt())


def test_less_noise_than_the_plain_integral():
    """The reference and its control variate are there for the variance: 10 times less than the plain one's at least."""
    model = image_mixture(0.2, VP())
    x = model.draw(16, seed=1)
    ours = log_density_immse(model, x, evaluations=64).std_error.square().mean()
    assert float(ours) < 0.1 * float(
        elbo_continuous(model, None, x, evaluations=64, reference="none").std_error.square().mean()
    )


def test_a_gaussian_reference_leaves_no_noise():
    """For data N(0, I) and |x|^2 = D the reference is the law itself: no noise, no ends, whatever eps."""
    model = Gaussian(torch.zeros(6).double(), f64(1.0), VP())
    x = torch.ones(2, 6, dtype=torch.float64)
    estimate = log_density_immse(model, x, evaluations=3)
    torch.testing.assert_close(estimate.log_prob, model.log_prob(x))
    assert float(estimate.std_error.max()) < 1e-5
    assert estimate.systematic_error < 1e-5


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_gaussian(levels):
    """E_u log p(x + u) + D log w in closed form; each noise level has its own u, and the error knows of it."""
    mean, std = f64([0.2, -0.3, 0.0]), f64([0.5, 0.4, 0.6])
    dequantizer = Dequantizer(levels)
    model = Gaussian(mean, std, VP())
    images = dequantizer.quantize(model.draw(300, seed=2))
    second = (dequantizer.center(images, torch.float64) - mean) ** 2 + dequantizer.width**2 / 12
    truth = (-0.5 * second / std**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).sum(1)
    estimate = diffusion.log_likelihood(model, images, method="immse", levels=levels, evaluations=64)
    gap, error = mean_gap(estimate, truth + dequantizer.log_jacobian(3))
    assert abs(gap) < 4 * error + 1e-3
    said = float(estimate.std_error.square().mean().sqrt()) / 300**0.5
    assert 0.7 < error / said < 1.3
    assert estimate.kind == "lower bound"
    assert estimate.levels == levels
    assert estimate.protocol["dequantization"] == "uniform"


def test_kind_is_a_surrogate_where_the_denoiser_is_not_exact():
    model = Clipped(plane(0.3, VP()))
    images = torch.zeros(2, 2, dtype=torch.uint8)
    assert log_density_immse(model, f64([[0.1, 0.2]])).kind == "surrogate"
    assert log_likelihood_immse(model, Dequantizer(17), images).kind == "surrogate"


def test_ends_of_data_without_a_density_are_said():
    """Data on points: the integrand stays at D/2 for good, and the budget says that nearly as much is a guess."""
    model = Empirical(f64([[0.5, -0.5], [-0.5, 0.5]]), VP())
    estimate = log_density_immse(model, model.draw(8, seed=0))
    assert 0.8 * 0.5 / math.log(2.0) < estimate.systematic_error < 0.5 / math.log(2.0)
    gap = abs(float(estimate.log_prob.mean()) - (-math.log(2.0) - math.log(2 * math.pi * math.exp(-14.0))))
    assert gap < estimate.systematic_error * estimate.nats_per_bit_per_dim + 4 * float(estimate.std_error.max())


def test_noise_levels_have_the_density_that_they_say():
    low, high, count = -9.0, 13.0, 200_000
    positions = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    log_snr, density = noise_levels(low, high, positions)
    assert low < float(log_snr.min()) < float(log_snr.max()) < high
    for power in (0, 1, 2):  # integrals of powers over the span
        exact = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
        assert float((log_snr**power / density).mean()) == pytest.approx(exact, rel=1e-6)
    assert float((1 / density).max()) < 2 * (high - low)


def test_a_stratum_does_not_choose_its_own_coefficient():
    error, reference = seeded(2, 9).square(), seeded(2, 9, seed=1).square()
    before = coefficient(error, reference)
    error[:, 4] *= 100.0
    after = coefficient(error, reference)
    assert torch.equal(before[:, 4], after[:, 4])
    assert bool((after[:, 3] >= before[:, 3]).all())
    torch.testing.assert_close(coefficient(0.3 * reference, reference), torch.full((2, 9), 0.3).double())


def test_rows_depend_on_seed_and_index_only():
    dequantizer, model = Dequantizer(17), image_mixture(0.3, VP())
    images = dequantizer.quantize(model.draw(9, seed=6))
    seen = []
    options: dict = {"evaluations": 8, "batch_size": 4}
    whole = log_likelihood_immse(model, dequantizer, images, progress=lambda *done: seen.append(done), **options)
    assert seen == [(4, 9), (8, 9), (9, 9)]
    rows = torch.tensor([7, 2])
    some = log_likelihood_immse(model, dequantizer, images[rows], indices=rows, **options)
    torch.testing.assert_close(some.log_prob, whole.log_prob[rows])
    other = log_likelihood_immse(model, dequantizer, images, seed=1, **options)
    assert float((other.log_prob - whole.log_prob).abs().min()) > 1e-3


def test_errors():
    model, images = plane(0.3, VP()), torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(UserError, match="evaluations: found 2; must be at least 3"):
        log_density_immse(model, torch.zeros(2, 2), evaluations=2)
    with pytest.raises(UserError, match=r"x: found torch\.uint8"):
        diffusion.log_density(model, images, method="immse")
    with pytest.raises(UserError, match="images: found shape"):
        log_density_immse(model, torch.zeros(2, 3))
    with pytest.raises(UserError, match="cond: found 3 for 2"):
        log_likelihood_immse(model, Dequantizer(17), images, cond=torch.arange(3))
    with pytest.raises(UserError, match="tolerance: not an option of log_likelihood_immse"):
        diffusion.log_likelihood(model, images, method="immse", tolerance=1e-3)
    with pytest.raises(UserError, match="Did you mean 'immse'"):
        diffusion.log_density(model, torch.zeros(2, 2), method="imse")
