"""The ODE's likelihoods against closed forms, on every path, in the plane and on images."""

import math

import pytest
import torch
from laws import f64, name, seeded
from torch import nn

from diffusion.denoisers import NetworkDenoiser
from diffusion.denoisers.exact import Gaussian, GaussianMixture
from diffusion.errors import SolverError, UserError
from diffusion.likelihood import Dequantizer, Estimate, log_density, log_likelihood_ode
from diffusion.likelihood.estimate import mean_interval
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Rectified, SubVP


def bits_off(estimate: Estimate, truth: torch.Tensor) -> torch.Tensor:
    return (estimate.log_prob - truth) / estimate.nats_per_bit_per_dim


def plane(std, schedule):
    return GaussianMixture(0.6 * seeded(5, 2), torch.full((5,), std).double(), schedule)


def image_mixture(std, schedule, shape=(3, 8, 8), spread=0.5):
    return GaussianMixture(spread * seeded(4, *shape), torch.full((4,), std).double(), schedule)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), Cosine(), Rectified(), VE(), EDM(), DDPM()], ids=name)
def test_exact_trace_on_every_path(schedule):
    """Within 1e-3 bits/dim; what t_min leaves in the data is part of the truth (1 % of noise on DDPM's path)."""
    gaussian = Gaussian(f64([0.3, -0.5]), f64([0.5, 0.1]), schedule)
    t_min = f64(schedule.t_min)
    alpha, _ = schedule(t_min)
    for model in (gaussian, plane(0.3, schedule)):
        x = model.draw(32, seed=1)
        estimate = log_density(model, x)
        smoothed = model.log_prob_at(alpha * x, t_min) + 2 * alpha.log()
        assert float(bits_off(estimate, smoothed).abs().max()) < 1e-3
        assert abs(float(bits_off(estimate, model.log_prob(x)).mean())) < 1e-3
        assert 30 < estimate.nfe < 90
        assert estimate.kind == "exact"
        assert float(estimate.std_error.abs().max()) == 0.0
        assert estimate.levels is None


@pytest.mark.parametrize("std", [0.08, 0.3])
def test_exact_trace_of_narrow_and_wide_mixtures(std):
    model = plane(std, VP())
    x = model.draw(128, seed=1)
    estimate = log_density(model, x)
    assert float(bits_off(estimate, model.log_prob(x)).abs().max()) < 1e-3
    assert estimate.nfe < 200


@pytest.mark.parametrize(("std", "spread"), [(0.08, 0.5), (0.2, 0.1)])
def test_exact_trace_on_images(std, spread):
    model = image_mixture(std, VP(), spread=spread)
    x = model.draw(2, seed=1)
    estimate = log_density(model, x)
    assert float(bits_off(estimate, model.log_prob(x)).abs().max()) < 3e-4
    assert estimate.nfe < 140
    assert estimate.dims == 192


@pytest.mark.parametrize(
    ("method", "steps", "grid"), [("rk4", 40, "log-snr"), ("heun3", 60, "log-snr"), ("midpoint", 60, "angle")]
)
def test_fixed_steps(method, steps, grid):
    model = plane(0.3, VP())
    x = model.draw(32, seed=1)
    estimate = log_density(model, x, method=method, steps=steps, grid=grid)
    assert float(bits_off(estimate, model.log_prob(x)).abs().max()) < 1e-3
    stages = {"rk4": 4, "heun3": 3, "midpoint": 2}[method]
    assert estimate.nfe == stages * steps + 1  # one more closes the path
    assert "tolerance" not in estimate.protocol
    assert estimate.protocol["steps"] == steps


def test_hutchinson_intervals_cover_the_truth():
    """200 repeats of 16 probes at one sample of an 8-D mixture: the 95 % interval covers, the mean is unbiased."""
    model = GaussianMixture(0.5 * seeded(3, 8), f64([0.3, 0.4, 0.5]), VP())
    settings: dict = {"method": "rk4", "steps": 30}
    x = model.draw(1, seed=4)
    truth = float(log_density(model, x, **settings).log_prob)
    estimate = log_density(model, x.expand(200, -1), "hutchinson", 16, batch_size=200, seed=5, **settings)
    assert estimate.kind == "unbiased"
    spread = estimate.log_prob.std()
    assert float(spread) > 1e-3
    assert abs(float(estimate.log_prob.mean()) - truth) < 4 * float(spread) / 200**0.5
    half = 2.1314 * estimate.std_error  # Student's t at 15 degrees of freedom
    covered = ((estimate.log_prob - truth).abs() <= half).double().mean()
    assert 0.90 <= float(covered) <= 0.99
    # the budget's entry is the spread of a mean over images
    expected = float(spread) / 200**0.5 / estimate.nats_per_bit_per_dim
    assert estimate.error_budget["probes"] == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_gaussian(levels):
    """E_u log p(x + u) + D log w in closed form: the mean of (y - m)^2 over a bin is (center - m)^2 + w^2 / 12."""
    mean, std = f64([0.2, -0.3, 0.0]), f64([0.5, 0.4, 0.6])
    dequantizer = Dequantizer(levels)
    model = Gaussian(mean, std, VP())
    images = dequantizer.quantize(model.draw(16, seed=2))
    second = (dequantizer.center(images, torch.float64) - mean) ** 2 + dequantizer.width**2 / 12
    terms = -0.5 * second / std**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
    truth = terms.sum(1) + dequantizer.log_jacobian(3)
    estimate = log_likelihood_ode(model, dequantizer, images, draws=64, trace="exact")
    gap = estimate.log_prob - truth
    assert float(gap.mean().abs()) < 4 * float(estimate.std_error.square().sum().sqrt()) / 16 + 1e-3
    assert bool((gap.abs() < 4.5 * estimate.std_error + 3e-3).all())
    # the bound lies below the probability of the level
    edges = torch.distributions.Normal(mean, std)
    low = dequantizer.low + dequantizer.width * images.double()
    mass = (edges.cdf(low + dequantizer.width) - edges.cdf(low)).log().sum(1)
    assert bool((truth < mass).all())
    assert estimate.kind == "lower bound"
    assert estimate.levels == levels
    assert set(estimate.error_budget) == {"test set", "draws"}


def test_dequantised_mixture_by_quadrature():
    dequantizer = Dequantizer(17)
    model = GaussianMixture(f64([[-0.5], [0.4]]), f64([0.08, 0.2]), VP())
    images = dequantizer.quantize(model.draw(12, seed=3))
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    points = dequantizer.dequantize(images.expand(-1, 400).contiguous(), u.expand(12, -1))
    truth = model.log_prob(points.reshape(-1, 1)).reshape(12, 400).mean(1) + dequantizer.log_jacobian(1)
    estimate = log_likelihood_ode(model, dequantizer, images, draws=64, probes=2)  # in 1-D signs are exact
    assert bool(((estimate.log_prob - truth).abs() < 4.5 * estimate.std_error + 2e-3).all())
    assert estimate.error_budget["probes"] < 1e-12


def test_results_do_not_depend_on_batches_and_each_image_counts_once():
    dequantizer = Dequantizer(17)
    model = image_mixture(0.3, Cosine(), shape=(1, 3, 3))
    images = dequantizer.quantize(model.draw(23, seed=6))
    seen = []
    whole = log_likelihood_ode(model, dequantizer, images, batch_size=16, progress=lambda *done: seen.append(done))
    assert seen == [(16, 23), (23, 23)]
    assert whole.indices is not None
    assert whole.indices.tolist() == list(range(23))
    sevens = log_likelihood_ode(model, dequantizer, images, batch_size=7)
    assert len(sevens) == 23
    assert float(bits_off(sevens, whole.log_prob).abs().max()) < 1e-8
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))[:2]
    ones = log_likelihood_ode(model, dequantizer, images[order], batch_size=1, indices=order)
    assert float(bits_off(ones, whole.log_prob[order]).abs().max()) < 1e-8
    assert float(bits_off(whole, log_likelihood_ode(model, dequantizer, images, seed=1).log_prob).abs().max()) > 0.02
    assert bool(whole.std_error.isnan().all())  # one draw says nothing of its own spread, the mean's interval does
    assert math.isfinite(whole.mean().low)
    assert whole.mean() == mean_interval(whole.bits_per_dim)
    again = log_likelihood_ode(model, dequantizer, images, batch_size=16)
    assert torch.equal(again.log_prob, whole.log_prob)
    assert again.protocol == whole.protocol


class Shrinking(nn.Module):
    """eps_hat of data N(0, 1/4 I) on a variance-preserving path, with dropout and a parameter in float32."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, c_noise, labels):
        alpha2 = torch.sigmoid(4.0 * c_noise)[:, None]
        sigma2 = 1.0 - alpha2
        return self.gain * self.dropout(sigma2.sqrt() * x / (0.25 * alpha2 + sigma2))


def test_network_in_float32_with_dropout_left_on():
    """The state is float64 around a float32 network; dropout is off within, and its mode is put back."""
    model = NetworkDenoiser(Shrinking(), VP(), "eps", (4,))
    x = 0.5 * seeded(8, 4)
    estimate = log_density(model, x.float(), tolerance=1e-4)
    truth = Gaussian(f64([0.0] * 4), f64(0.5), VP()).log_prob(x)
    assert float(bits_off(estimate, truth).abs().max()) < 2e-3
    assert model.network.dropout.training
    assert model.network.gain.grad is None


def test_errors():
    model = plane(0.3, VP())
    x = model.draw(2)
    cases: list[tuple[dict, str]] = [
        ({"trace": "hutchison"}, "Did you mean 'hutchinson'"),
        ({"method": "rk45"}, "method: 'rk45'"),
        ({"tolerance": 0.0}, "tolerance: found 0.0"),
        ({"probes": 0}, "probes: found 0"),
        ({"cond": torch.arange(3)}, "cond: found 3 for 2"),
        ({"batch_size": -1}, "batch_size: found -1"),
        ({"indices": torch.zeros(2, dtype=torch.int64), "batch_size": 1}, "each image counts once"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            log_density(model, x, **settings)
    with pytest.raises(UserError, match="images: found shape"):
        log_density(model, torch.zeros(2, 3))
    with pytest.raises(UserError, match="draws: found 0"):
        log_likelihood_ode(model, Dequantizer(17), torch.zeros(2, 2, dtype=torch.uint8), draws=0)


@pytest.mark.parametrize(("sign", "trace"), [(0.0, "exact"), (0.0, "hutchinson"), (-1.0, "exact")])
@pytest.mark.parametrize("schedule", [VP(), VE(), Rectified()], ids=name)
def test_a_flow_that_does_not_end_in_noise_has_no_density(schedule, sign, trace):
    """Of eps_hat = 0, or the noise with the other sign: the logarithm of 0, or of its rounding, or of less."""

    class Wrong(Gaussian):
        def forward(self, x_t, t, cond=None):
            alpha, _ = schedule(t)
            noise = x_t - alpha * super().forward(x_t, t)
            return (x_t - sign * noise) / alpha

    with pytest.raises(SolverError, match="the network's estimate of the noise does not grow with x_t"):
        log_density(Wrong(f64([0.0, 0.0]), f64(1.0), schedule), torch.zeros(2, 2).double(), trace=trace)
