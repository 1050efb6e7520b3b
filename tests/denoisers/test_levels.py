"""A denoiser of levels: exact where the network knows the other pixels, on every path, and at its start."""

import math

import pytest
import torch
from laws import F64, SCHEDULES, f64, log_snrs, name, seeded
from torch import nn

from diffusion.config import load_config, parse_config
from diffusion.denoisers import LevelDenoiser, exact
from diffusion.denoisers.predictions import NAMES, PathPoint
from diffusion.errors import UserError
from diffusion.likelihood.dequantization import Dequantizer
from diffusion.likelihood.variational_bound import elbo_continuous
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.schedules import VP, Cosine

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
LEVELS = 5
PLACES = Dequantizer(LEVELS).places()


class Constant(nn.Module):
    """Log-odds (C, L) that depend on nothing."""

    def __init__(self, log_odds):
        super().__init__()
        self.log_odds = nn.Parameter(log_odds)

    def forward(self, x, c_noise, labels):
        return self.log_odds.flatten()[None, :, None, None].expand(len(x), -1, *x.shape[2:])


class OtherPixel(nn.Module):
    """The log-odds of each of two pixels given the other one, from their joint probabilities p(k, l)."""

    def __init__(self, joint):
        super().__init__()
        self.log_joint = nn.Parameter(joint.log())

    def forward(self, x, c_noise, labels):
        snr = torch.exp(4.0 * c_noise)[:, None]  # variance preserving: alpha^2 = snr / (1 + snr)
        y = x.flatten(1) * torch.sqrt((1.0 + snr) / snr)
        seen = -0.5 * snr[..., None] * (y[..., None] - PLACES) ** 2  # (B, 2, L)
        first = torch.logsumexp(self.log_joint + seen[:, 1, None, :], 2)
        second = torch.logsumexp(self.log_joint.T + seen[:, 0, None, :], 2)
        return torch.stack((first, second), 2)[:, :, None, :]


@every_schedule
def test_independent_pixels_against_the_exact_denoiser(schedule):
    """Two channels with priors of their own; a prior in eighths is a finite set with repeated points."""
    counts = torch.tensor([[1, 2, 3, 1, 1], [4, 0, 1, 1, 2]])
    model = LevelDenoiser(Constant((counts.to(F64) / 8).log()), schedule, PLACES, (2, 2, 3))
    t = schedule.inverse_log_snr(log_snrs(schedule, 5, -6.0, 9.0))
    x_t = seeded(5, 2, 2, 3)
    for channel, count in enumerate(counts):
        truth = exact.Empirical(PLACES.repeat_interleave(count)[:, None], schedule)
        for i, at in enumerate(t):
            pixels = x_t[i, channel].reshape(-1, 1)
            for question in NAMES:
                asked = (x_t[i : i + 1], at)
                found = model.prediction(question, *asked)[0, channel].reshape(-1, 1)
                torch.testing.assert_close(found, truth.prediction(question, pixels, at), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(  # times of their own
            model(x_t, t)[:, channel].reshape(-1, 1),
            truth(x_t[:, channel].reshape(-1, 1), t.repeat_interleave(6)),
            rtol=1e-8,
            atol=1e-8,
        )


@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=name)
def test_a_network_that_knows_the_other_pixel_makes_the_posterior_of_both(schedule):
    """Bayes' rule of the module's text, on a joint law of two pixels that are far from independent."""
    counts = torch.randint(0, 9, (LEVELS, LEVELS), generator=torch.Generator().manual_seed(0)) + 8 * torch.eye(5).int()
    pairs = torch.cartesian_prod(PLACES, PLACES).repeat_interleave(counts.flatten(), 0)
    truth = exact.Empirical(pairs.reshape(-1, 1, 1, 2), schedule)
    model = LevelDenoiser(OtherPixel(counts.to(F64) / counts.sum()), schedule, PLACES, (1, 1, 2))
    t = schedule.inverse_log_snr(log_snrs(schedule, 40, -6.0, 9.0))
    alpha, sigma = (value[:, None, None, None] for value in schedule(t))
    x_t = alpha * truth.draw(40) + sigma * seeded(40, 1, 1, 2)
    torch.testing.assert_close(model(x_t, t), truth(x_t, t), rtol=1e-8, atol=1e-8)


def test_single_precision_is_enough_where_the_noise_is_least():
    schedule = Cosine(log_snr_max=14.0)
    model = LevelDenoiser(Constant(torch.zeros(1, 17)), schedule, Dequantizer(17).places(), (1, 8, 8)).requires_grad_(
        False
    )
    t = schedule.inverse_log_snr(f64([-9.0, 0.0, 4.0, 5.0, 6.0, 8.0, 13.9]))
    x = Dequantizer(17).center(torch.arange(7 * 64).reshape(7, 1, 8, 8).remainder(17).to(torch.uint8), F64)
    alpha, sigma = (value[:, None, None, None] for value in schedule(t))
    x_t = alpha * x + sigma * seeded(7, 1, 8, 8)
    # an error of sigma / alpha times 1e-2 in x is one of 1e-2 in eps
    error = (model(x_t.float(), t) - model(x_t.float().double(), t)).abs() * (alpha / sigma)
    assert float(error.amax()) < 1e-2


FRESH = """
    schedule: {{name: learned, log_snr_max: 10, log_snr_min: -12}}
    network: {{{}}}
    denoiser: {{prediction: levels}}
    objective: {{dequantize: false}}
"""


def test_a_fresh_model_is_uniform_over_the_levels():
    """The bound of the exact denoiser is tight: log2(17) bits a pixel, to within the error that it states."""
    networks = (
        "name: unet, base_channels: 4, multipliers: [1], blocks: 1, attention: []",
        "name: dit, width: 8, depth: 1, heads: 1",
    )
    facts = DataFacts("digits", (1, 8, 8), 17, 0)
    unet, dit = (build_denoiser(parse_config(FRESH.format(network)), facts) for network in networks)
    x_t, t = seeded(3, 1, 8, 8).float(), f64([0.1, 0.4, 0.8])
    torch.testing.assert_close(dit(x_t, t), unet(x_t, t))

    images = torch.arange(20 * 64).remainder(17).to(torch.uint8).reshape(20, 1, 8, 8)
    bound = elbo_continuous(unet, Dequantizer(17), images, evaluations=128)
    # All images have the same truth: which were chosen is no source of error here.
    error = bound.measurement_error
    assert error < 0.04
    assert abs(float(bound.bits_per_dim.mean()) - math.log2(17)) < 4 * error


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="two levels"):
        LevelDenoiser(nn.Identity(), VP(), PLACES[:1], (1, 2, 2))
    with pytest.raises(UserError, match=r"objective\.dequantize: found true"):
        load_config("digits", ["denoiser.prediction=levels", "objective.dequantize=true"])
    config = load_config("toy", ["denoiser.prediction=levels", "objective.dequantize=false"])
    with pytest.raises(UserError, match="'gaussians' have none"):
        build_denoiser(config, DataFacts("gaussians", (2,), None, 0))


def test_pure_noise_and_almost_none_are_finite_with_their_gradients():
    """Paths whose alpha falls to zero, and noise so narrow that all levels but one underflow."""
    model = LevelDenoiser(Constant(torch.zeros(1, 17)), Cosine(), Dequantizer(17).places(), (1, 1, 4)).float()
    x_t = torch.tensor([[[[-0.97, -0.1, 0.3, 3.0]]]], requires_grad=True)
    for alpha, sigma in ((0.0, 1.0), (1.0, 80.0), (1.0, 1e-5)):
        at = PathPoint(model.schedule, f64(0.5), x_t)
        at.alpha, at.sigma = alpha, sigma
        raw = torch.zeros(1, 17, 1, 4, requires_grad=True)
        x_hat = model.raw_to_x(raw, x_t, at)
        assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(x_hat.sum(), (raw, x_t)))
        if sigma == 1e-5:  # the nearest level
            nearest = model.places[(x_t.detach()[..., None] - model.places).abs().argmin(-1)]
            torch.testing.assert_close(x_hat.detach(), nearest.to(x_hat.dtype))
        elif alpha == 0.0:  # the mean of the prior
            torch.testing.assert_close(x_hat.detach(), torch.zeros_like(x_hat), rtol=0, atol=1e-6)
