"""The evidence lower bounds against closed forms: every term, the gap, the limit, and the standard error."""

import math

import pytest
import torch
from laws import f64, name, seeded
from torch.distributions import Normal, kl_divergence

from diffusion.denoisers import Denoiser
from diffusion.denoisers.exact import Empirical, Gaussian
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer, elbo_continuous, elbo_discrete
from diffusion.likelihood.estimate import mean_error
from diffusion.likelihood.variational_bound import discrete_times
from diffusion.numerics import random
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Rectified

MEAN, STD, DIMS = 0.3, 0.4, 5


def snr_ends(schedule):
    return schedule.log_snr(f64([schedule.t_max, schedule.t_min])).exp()


def end_terms(schedule, x):
    """The prior's term -KL(q(x_1 | x) || p(x_1)) by torch, and the decoder's E log N(x; x_0 / alpha, 1 / S)."""
    alpha, sigma = schedule(f64(schedule.t_max))
    prior = -kl_divergence(Normal(alpha * x, sigma), Normal(f64(0.0), f64(schedule.prior_std))).sum(1)
    _, high = snr_ends(schedule)
    reconstruction = -0.5 * DIMS * (torch.log(2 * math.pi / high) + 1)
    return prior, reconstruction.expand(len(x))


def continuous_truth(schedule, x):
    """-1/2 integral of E||eps - eps_hat||^2 dS/S for data N(m, c^2): with w = S c^2 + 1 the integrand is
    D (w - 1) / w^2 + |x - m|^2 / c^2 / w^2 in dw."""
    w0, w1 = (snr_ends(schedule) * STD**2 + 1).tolist()
    square = ((x - MEAN) / STD).square().sum(1)
    return -0.5 * (DIMS * (math.log(w1 / w0) + 1 / w1 - 1 / w0) + square * (1 / w0 - 1 / w1))


def discrete_truth(schedule, times, x):
    """-sum of 1/2 (S_s - S_t) E||x - x_hat||^2 (arXiv 2107.00630, eq. 13) for data N(m, c^2)."""
    snr = schedule.log_snr(times.sort().values).exp()
    s, t = snr[:-1], snr[1:]
    w = t * STD**2 + 1
    square = ((x - MEAN) / STD).square().sum(1)[:, None]
    return -0.5 * (s - t) * STD**2 * (square / w**2 + DIMS * t * STD**2 / w**2)


def gaussian(schedule):
    return Gaussian(torch.full((DIMS,), MEAN).double(), f64(STD), schedule)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Rectified(), EDM()], ids=name)
def test_continuous_bound_of_a_gaussian(schedule):
    model = gaussian(schedule)
    x = model.draw(200, seed=1)
    estimate = elbo_continuous(model, None, x, evaluations=96)
    prior, reconstruction = end_terms(schedule, x)
    torch.testing.assert_close(estimate.terms["prior"], prior)
    torch.testing.assert_close(estimate.terms["reconstruction"], reconstruction)
    expected = continuous_truth(schedule, x)
    error = estimate.terms["diffusion"] - expected
    assert abs(float(error.mean())) < 4 * float(error.std()) / 200**0.5
    said = estimate.std_error.square().mean()  # the variance of an image's estimate, as it says itself
    assert 0.75 < float(error.square().mean() / said) < 1.3
    parts = [estimate.terms[part] for part in ("prior", "reconstruction", "diffusion")]
    torch.testing.assert_close(estimate.log_prob, sum(parts))
    torch.testing.assert_close(estimate.terms["curve"].sum(1), estimate.terms["diffusion"])


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Rectified(), EDM()], ids=name)
def test_mean_bound_lies_below_the_truth_by_the_kls_at_the_ends(schedule):
    """Nothing is lost on the path: the closed form that the estimator meets above is the truth less two KLs."""
    x = MEAN + STD * torch.ones(1, DIMS).double()  # |x - m|^2 / c^2 = D, as it is on average
    alpha, sigma = schedule(f64(schedule.t_max))
    marginal = Normal(alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt())
    at_noise = DIMS * kl_divergence(marginal, Normal(f64(0.0), f64(schedule.prior_std)))
    s = snr_ends(schedule)[1]
    posterior_variance = 1 / (s + STD**-2)  # of x given x_0; the decoder says 1 / s, around x_0 / alpha
    excess = (1 - s * posterior_variance) ** 2 * (STD**2 + 1 / s)  # the mean square between the two means
    ratio = posterior_variance * s
    at_data = 0.5 * DIMS * (ratio - 1 - torch.log(ratio) + s * excess)
    prior, reconstruction = end_terms(schedule, x)
    # the prior's term is averaged over the data: x itself has the mean square (m + c)^2, the data have m^2 + c^2
    prior = prior + DIMS * alpha**2 * MEAN * STD / schedule.prior_std**2
    bound = float(prior + reconstruction + continuous_truth(schedule, x))
    entropy = 0.5 * DIMS * (math.log(2 * math.pi * STD**2) + 1)
    assert float(at_noise + at_data) > 0
    assert -entropy - bound == pytest.approx(float(at_noise + at_data), rel=1e-4)


def test_curve_tells_where_the_nats_go():
    model = gaussian(VP())
    x = model.draw(400, seed=1)
    estimate = elbo_continuous(model, None, x, evaluations=48, bins=6)
    edges = torch.linspace(*estimate.protocol["curve_log_snr"], 7, dtype=torch.float64)
    snr = edges.exp()
    w0, w1 = snr[:-1] * STD**2 + 1, snr[1:] * STD**2 + 1
    expected = -0.5 * DIMS * (torch.log(w1 / w0))  # averaged over the data the two terms in 1 / w cancel
    curve = estimate.terms["curve"]
    assert bool(((curve.mean(0) - expected).abs() < 4 * curve.std(0) / 20).all())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bounds_of_a_finite_data_set(levels):
    """N equally likely images have -log P = log N, and with the exact denoiser the bound is tight."""
    dequantizer = Dequantizer(levels)
    generator = torch.Generator().manual_seed(levels)
    images = torch.randint(0, levels, (64, 1, 2, 2), generator=generator).to(torch.uint8).unique(dim=0)[:8]
    model = Empirical(dequantizer.center(images, torch.float64), Cosine())
    repeated = images.repeat(16, 1, 1, 1)
    continuous = elbo_continuous(model, dequantizer, repeated, evaluations=64)
    assert float(continuous.log_prob.mean()) == pytest.approx(
        -math.log(8), abs=4 * float(continuous.log_prob.std()) / 128**0.5 + 2e-3
    )
    discrete = elbo_discrete(model, dequantizer, repeated, discrete_times(model.schedule, 16), evaluations=8)
    assert float(discrete.log_prob.mean()) < float(continuous.log_prob.mean()) - 0.1
    assert continuous.kind == discrete.kind == "lower bound"
    assert continuous.levels == levels


@pytest.mark.parametrize("evaluations", [None, 12])
def test_discrete_bound_of_a_gaussian_step_by_step(evaluations):
    schedule = VP()
    model = gaussian(schedule)
    x = model.draw(300, seed=2)
    times = discrete_times(schedule, 24)
    estimate = elbo_discrete(model, None, x, times.flip(0), evaluations=evaluations)
    expected = discrete_truth(schedule, times, x)
    assert estimate.nfe == (evaluations or 24)
    gap = estimate.terms["diffusion"] - expected.sum(1)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 300**0.5
    assert float(estimate.std_error.square().mean().sqrt()) == pytest.approx(float(gap.std()), rel=0.3)
    if evaluations is None:
        step_gap = estimate.terms["steps"] - expected
        assert bool((step_gap.mean(0).abs() < 4.5 * step_gap.std(0) / 300**0.5).all())


def test_discrete_bound_rises_to_the_continuous_one():
    schedule = VP()
    model = gaussian(schedule)
    x = model.draw(200, seed=2)
    limit = float(continuous_truth(schedule, x).mean())
    closed = [
        float(discrete_truth(schedule, discrete_times(schedule, n), x).sum(1).mean()) for n in (8, 32, 128, 1024, 4096)
    ]
    assert closed == sorted(closed)
    assert closed[-1] < limit
    assert (limit - closed[3]) / (limit - closed[4]) == pytest.approx(4, rel=0.02)  # the gap goes as 1 / T
    for n in (8, 32, 128):
        times = discrete_times(schedule, n)
        error = elbo_discrete(model, None, x, times).terms["diffusion"] - discrete_truth(schedule, times, x).sum(1)
        assert abs(float(error.mean())) < 4 * float(error.std()) / 200**0.5


class Zero(Denoiser):
    """x_hat = 0, so that every KL is known whatever the noise."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.shape = schedule, (DIMS,)

    def forward(self, x_t, t, cond=None):
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_steps_are_the_kls_of_ddpm(variance):
    """Against Ho et al. 2020, eq. 7, in betas, with torch's KL between Gaussians; no noise is left in it."""
    steps = 50
    schedule = DDPM(steps=steps, betas="linear", beta_start=0.002, beta_end=0.3)
    betas = torch.linspace(0.002, 0.3, steps, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    x = seeded(3, DIMS)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    estimate = elbo_discrete(Zero(schedule), None, x, times, variance=variance)
    beta, bar_t, bar_s = betas[1:], bar[1:], bar[:-1]
    coefficient = bar_s.sqrt() * beta / (1 - bar_t)  # of x in the mean of q(x_s | x_t, x)
    lower = beta * (1 - bar_s) / (1 - bar_t)
    model = lower if variance == "lower" else beta
    kl = kl_divergence(
        Normal(coefficient * x[:, :, None], lower.sqrt()), Normal(torch.zeros(steps - 1).double(), model.sqrt())
    ).sum(1)
    torch.testing.assert_close(estimate.terms["steps"], -kl, rtol=1e-6, atol=1e-9)


def test_early_end_helps_a_model_that_knows_no_levels():
    """Every end gives a bound, and for a Gaussian one near the width of a bin nearly reaches log P."""
    dequantizer = Dequantizer(17)
    model = gaussian(Cosine())
    images = dequantizer.quantize(model.draw(200, seed=3))
    low = dequantizer.low + dequantizer.width * images.double()
    law = Normal(f64(MEAN), f64(STD))
    inside = law.cdf(f64(1.0)) - law.cdf(f64(-1.0))  # the decoder knows that there is nothing outside
    truth = ((law.cdf(low + dequantizer.width) - law.cdf(low)) / inside).log().sum(1)
    end = 2 * math.log(2.5 / dequantizer.width)
    early = elbo_continuous(model, dequantizer, images, evaluations=128, log_snr_max=end)
    late = elbo_continuous(model, dequantizer, images)
    gap = float((truth - early.log_prob).mean()) / early.nats_per_bit_per_dim
    assert -0.03 < gap < 0.1
    assert float(late.log_prob.mean()) < float(early.log_prob.mean()) - 2.0 * DIMS
    assert early.protocol["curve_log_snr"][1] == end
    with pytest.raises(UserError, match="log_snr_max: found -20"):
        elbo_continuous(model, dequantizer, images, log_snr_max=-20.0)


def test_rows_depend_on_seed_and_index_only():
    dequantizer = Dequantizer(17)
    model = Gaussian(torch.zeros(1, 2, 2).double(), f64(0.5), Cosine())
    images = dequantizer.quantize(model.draw(20, seed=1))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    times = discrete_times(model.schedule, 10)
    for bound in (
        lambda images, **options: elbo_continuous(model, dequantizer, images, evaluations=8, **options),
        lambda images, **options: elbo_discrete(model, dequantizer, images, times, evaluations=4, **options),
    ):
        whole = bound(images)
        shuffled = bound(images[order], indices=order, batch_size=7)
        torch.testing.assert_close(shuffled.log_prob, whole.log_prob[order])
        assert shuffled.indices is not None
        assert sorted(shuffled.indices.tolist()) == list(range(20))
        assert float((bound(images, seed=1).log_prob - whole.log_prob).abs().min()) > 0
        assert math.isfinite(whole.error_budget["noise"])


def test_errors():
    model = gaussian(VP())
    x = model.draw(2)
    with pytest.raises(UserError, match="pass a dequantizer"):
        elbo_continuous(model, None, torch.zeros(2, DIMS, dtype=torch.uint8))
    with pytest.raises(UserError, match="evaluations: found 0"):
        elbo_continuous(model, None, x, evaluations=0)
    with pytest.raises(UserError, match="distinct times above 0"):
        elbo_discrete(model, None, x, f64([0.0, 0.5, 1.0]))
    with pytest.raises(UserError, match="there are only 4 steps"):
        elbo_discrete(model, None, x, discrete_times(VP(), 4), evaluations=5)
    with pytest.raises(UserError, match="Did you mean 'lower'"):
        elbo_discrete(model, None, x, discrete_times(VP(), 4), variance="low")


@pytest.mark.parametrize("estimator", ["continuous", "discrete"])
def test_the_bound_of_dequantised_images_is_that_of_their_density(estimator):
    """E_u of the density's bound + D log w; each noise level has its own u, and the standard error knows of both."""
    model, dequantizer = Gaussian(torch.zeros(2, 3), torch.full((2, 3), 0.4), VP()), Dequantizer(17)
    images = (torch.arange(6, dtype=torch.uint8) * 3).reshape(1, 2, 3).expand(400, 2, 3).contiguous()
    u = random.uniform(5, torch.arange(400), 0, (2, 3), random.STREAM_DEQUANTIZE, torch.float64)
    x, indices = dequantizer.dequantize(images, u), torch.arange(1000, 1400)
    if estimator == "continuous":
        whole = elbo_continuous(model, dequantizer, images, dequantize=True, seed=5)
        density = elbo_continuous(model, None, x, indices=indices)
    else:
        times = discrete_times(model.schedule, 40)
        whole = elbo_discrete(model, dequantizer, images, times, dequantize=True, seed=5)
        density = elbo_discrete(model, None, x, times, indices=indices)
    assert whole.levels == 17
    gap = float((whole.log_prob - density.log_prob).mean()) - 6 * math.log(2 / 17)
    assert abs(gap) < 4 * math.hypot(float(whole.log_prob.std()), float(density.log_prob.std())) / 20
    spread = float(whole.log_prob.std()) / 20 / whole.nats_per_bit_per_dim
    assert whole.error_budget["noise"] == pytest.approx(spread, rel=0.2)
    with pytest.raises(UserError, match="continuous data are not"):
        elbo_continuous(model, None, x, dequantize=True)


def test_the_decoders_own_noise_is_in_the_budget():
    """Levels finer than the noise at t_min, the spread of repeats is the decoder's."""
    model = Gaussian(torch.zeros(4), torch.full((4,), 0.4), VE(sigma_min=0.02))
    images = torch.full((300, 4), 140, dtype=torch.uint8)
    estimate = elbo_continuous(model, Dequantizer(256), images, evaluations=16)
    spread = float(estimate.terms["reconstruction"].std()) / math.sqrt(300) / estimate.nats_per_bit_per_dim
    assert estimate.error_budget["decoder"] == pytest.approx(spread, rel=0.15)
    assert estimate.random_error == pytest.approx(mean_error(estimate.std_error, 4), rel=1e-6)


@pytest.mark.parametrize("evaluations", [1, 2, 5, 40])
@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=name)
def test_the_reference_takes_noise_and_adds_no_bias(schedule, evaluations):
    """Of few noise levels, too; its closed form and its strata add up to the integral however many there are."""
    model = gaussian(schedule)
    x = model.draw(400, seed=1)
    expected = continuous_truth(schedule, x)
    ours, plain = (elbo_continuous(model, None, x, evaluations, reference=r) for r in ("gaussian", "none"))
    assert (ours.protocol["reference"], plain.protocol["reference"]) == ("gaussian", "none")
    gaps = [estimate.terms["diffusion"] - expected for estimate in (ours, plain)]
    for gap in gaps:
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / 20
    # one noise level has no neighbour to take a coefficient from, and two have one
    assert float(gaps[0].std()) < float(gaps[1].std()) / {1: 1.2, 2: 1.2, 5: 1.5, 40: 3.0}[evaluations]
    for estimate in (ours, plain):
        torch.testing.assert_close(estimate.terms["steps"].sum(1), estimate.terms["diffusion"])
        torch.testing.assert_close(estimate.terms["curve"].sum(1), estimate.terms["diffusion"])


def test_an_unknown_reference():
    with pytest.raises(UserError, match=r"reference: 'gausian'.*Did you mean 'gaussian'"):
        elbo_continuous(gaussian(VP()), None, torch.zeros(1, DIMS).double(), reference="gausian")
