"""A path that keeps signal at its end: begun in the Gaussian of the data's moments, Gaussian data are exact."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import diffusion
from diffusion.denoisers import Denoiser
from diffusion.denoisers.conventions import path_of
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.likelihood.batching import Batches
from diffusion.likelihood.variational_bound import DiscreteBound
from diffusion.numerics.random import Noise
from diffusion.schedules import VP, FittedStart

SHAPE = (1, 2, 2)
# 1,000 levels, of which the last keeps so much of the variance of the data; published ones kept 0.13.
KEPT = 0.6
SCHEDULE = path_of({"betas": [1.0 - KEPT ** (1 / 1000.0)] * 1000}).schedule


def moments(kind):
    generator = torch.Generator().manual_seed(3)
    mean = 0.5 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    if kind == "diagonal":
        return mean, torch.tensor([0.3, 0.1, 0.02, 0.5], dtype=torch.float64).diag()
    factor = 0.4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return mean, factor @ factor.mT + 0.02 * torch.eye(4, dtype=torch.float64)


class Linear(Denoiser):
    """E[x | x_t] of data N(m, C): the exact denoiser."""

    def __init__(self, mean, covariance, schedule=SCHEDULE):
        super().__init__()
        self.mean, self.covariance, self.schedule, self.shape = mean, covariance, schedule, SHAPE

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (value.double().expand(len(x_t)) for value in self.schedule(t))
        off = (x_t.double() - alpha.view(-1, 1, 1, 1) * self.mean).flatten(1)
        eye = torch.eye(4, dtype=torch.float64)
        of_t = alpha.square()[:, None, None] * self.covariance + sigma.square()[:, None, None] * eye
        gain = alpha[:, None, None] * self.covariance @ torch.linalg.inv(of_t)
        return (self.mean + (gain @ off[:, :, None])[:, :, 0].reshape(x_t.shape)).to(x_t.dtype)


def exact(kind):
    mean, covariance = moments(kind)
    start = FittedStart(mean, covariance if kind == "full" else covariance.diagonal().reshape(SHAPE))
    law = MultivariateNormal(mean.flatten(), covariance)
    return Linear(mean, covariance), start, law


KINDS = ["diagonal", "full"]


def test_the_path_keeps_signal():
    assert float(torch.sigmoid(SCHEDULE.log_snr(torch.ones((), dtype=torch.float64)))) == pytest.approx(KEPT)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_law_of_x_t(kind):
    """Its density, its draws and its divergence from q(x_t | x), against torch.distributions."""
    mean, covariance = moments(kind)
    _, start, law = exact(kind)
    t, x = 0.7, law.sample((5,)).reshape(5, *SHAPE)
    alpha, sigma = (float(value) for value in SCHEDULE(torch.tensor(t, dtype=torch.float64)))
    of_t = alpha**2 * covariance + sigma**2 * torch.eye(4, dtype=torch.float64)
    there = MultivariateNormal(alpha * mean.flatten(), of_t)
    torch.testing.assert_close(start.log_prob(SCHEDULE, t, x), there.log_prob(x.flatten(1)))
    around = MultivariateNormal(alpha * x.flatten(1), sigma**2 * torch.eye(4, dtype=torch.float64))
    expected = torch.distributions.kl_divergence(around, there)
    torch.testing.assert_close(start.divergence(SCHEDULE, t, x), expected)
    eye = torch.eye(4, dtype=torch.float64).reshape(4, *SHAPE)
    root = (start.draw(SCHEDULE, t, eye) - alpha * mean).flatten(1)
    torch.testing.assert_close(root.mT @ root, of_t)
    spread = 0.05
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4) * math.sqrt(spread)
    one = x[:1] + corners.reshape(-1, *SHAPE)
    mean_of = start.divergence(SCHEDULE, t, one).mean()
    torch.testing.assert_close(start.divergence(SCHEDULE, t, x[:1], spread)[0], mean_of)


@pytest.mark.parametrize("kind", KINDS)
def test_the_flows_density_of_gaussian_data_is_exact(kind):
    denoiser, start, law = exact(kind)
    x = law.sample((6,)).reshape(6, *SHAPE)
    options = {"method": "ode", "trace": "exact", "tolerance": 1e-7}
    found = diffusion.log_density(denoiser, x, fitted_start=start, **options)
    hidden = math.exp(-SCHEDULE.log_snr_ends[1])  # the noise of t_min is part of the density
    eye = torch.eye(4, dtype=torch.float64)
    expected = MultivariateNormal(law.mean, law.covariance_matrix + hidden * eye).log_prob(x.flatten(1))
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-4)
    assert repr(start) in found.protocol["fitted_start"]
    plain = diffusion.log_density(denoiser, x, **options)
    assert float((plain.log_prob - expected).abs().max()) > 0.1, "which begins elsewhere"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["elbo", "elbo-discrete"])
def test_the_bound_of_gaussian_data_is_exact(kind, method):
    """Of an exact denoiser nothing is lost but at the start, and there nothing either; of T steps, O(1 / T)."""
    denoiser, start, law = exact(kind)
    x = law.sample((64,)).reshape(64, *SHAPE)
    hidden, eye = math.exp(-SCHEDULE.log_snr_ends[1]), torch.eye(4, dtype=torch.float64)
    expected = MultivariateNormal(law.mean, law.covariance_matrix + hidden * eye).log_prob(x.flatten(1))
    if method == "elbo":
        found, plain = (
            diffusion.log_density(denoiser, x, method="elbo", evaluations=64, **more)
            for more in ({"fitted_start": start}, {})
        )
    else:
        times = SCHEDULE.inverse_log_snr(torch.linspace(*SCHEDULE.log_snr_ends, 2001, dtype=torch.float64))
        found, plain = (
            DiscreteBound(times=times, evaluations=64, fitted_start=given)(denoiser, x, Batches())
            for given in (start, None)
        )
    off = found.log_prob - expected
    error = float(found.std_error.square().sum().sqrt()) / 64
    assert abs(float(off.mean())) < 4 * error + 0.02
    lost = float((found.log_prob - plain.log_prob).mean())
    assert lost > 0.05, "both have the same noise: the difference is that of the starts"


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_moments_of_the_data(kind):
    """The flow of Gaussian data is affine along the axes of C: what was one normal there stays one."""
    denoiser, start, law = exact(kind)
    drawn = diffusion.sample(denoiser, 64, sampler="abm", steps=60, fitted_start=start, dtype="float64", seed=2)
    eps = Noise(2, torch.arange(64), SHAPE, torch.float64, "cpu").initial()
    values, axes = torch.linalg.eigh(law.covariance_matrix)
    hidden = math.exp(-SCHEDULE.log_snr_ends[1])
    along = (eps.flatten(1) @ axes) * values / (values + hidden).sqrt()  # the last step takes the mean of that noise
    expected = law.mean + along @ axes.mT
    torch.testing.assert_close(drawn.flatten(1), expected, rtol=0, atol=5e-4)
    plain = diffusion.sample(denoiser, 64, sampler="abm", steps=60, dtype="float64", seed=2)
    assert float((plain.flatten(1) - expected).abs().max()) > 0.05


def test_of_an_adopted_model_that_says_so(recwarn):
    """The line that says what is wrong is not said where it was mended, and levels are bounded with it."""
    images = Dequantizer(256).quantize(0.1 + 0.3 * torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0)))
    of_data = Linear(torch.full(SHAPE, 0.1, dtype=torch.float64), 0.09 * torch.eye(4, dtype=torch.float64))

    def network(x, i):
        return of_data(x, (i + 1.0) / 1000.0)

    betas = [1.0 - KEPT ** (1 / 1000.0)] * 1000
    model = diffusion.adopt(network, path={"betas": betas}, predicts="x", time="index", shape=SHAPE, levels=256)
    start = model.fitted_start(images[:20])
    model.sample(2, steps=3, fitted_start=start)
    options = {"method": "elbo", "evaluations": 16, "log_snr_max": 10.0}
    better = diffusion.log_likelihood(model, images[20:], fitted_start=start, **options)
    assert not [one for one in recwarn if "not in noise" in str(one.message)]
    with pytest.warns(UserWarning, match=r"not in noise .*fitted_start=model\.fitted_start\(images\)"):
        plain = diffusion.log_likelihood(model, images[20:], **options)
    assert float(better.log_prob.mean()) > float(plain.log_prob.mean()) + 0.05


def test_what_does_not_fit_is_refused():
    denoiser, start, _ = exact("diagonal")
    x = torch.zeros(2, *SHAPE)
    for given, told in (
        (3, "found a int; needs one of model"),
        (FittedStart(torch.zeros(3), torch.ones(3)), r"\(3,\)"),
    ):
        with pytest.raises(UserError, match=f"^fitted_start: .*{told}"):
            diffusion.sample(denoiser, 2, steps=2, fitted_start=given)
        for method in ("ode", "elbo"):
            with pytest.raises(UserError, match=f"^fitted_start: .*{told}"):
                diffusion.log_density(denoiser, x, method=method, fitted_start=given)
    with pytest.raises(UserError, match="noise, fitted_start: both"):
        diffusion.sample(denoiser, 2, steps=2, fitted_start=start, noise=x)
    with pytest.raises(UserError, match="fitted_start: not an option of"):
        diffusion.log_density(denoiser, x, method="immse", fitted_start=start)
    with pytest.raises(UserError, match=r"images: found 4; .* needs more than 4, its dimensions"):
        FittedStart.of(torch.randn(4, *SHAPE), "full")
    with pytest.raises(UserError, match=r"covariance: found shape \(3, 3\)"):
        FittedStart(torch.zeros(SHAPE), torch.eye(3))
    with pytest.raises(UserError, match="variance below zero"):
        FittedStart(torch.zeros(SHAPE), -torch.ones(SHAPE))
    with pytest.raises(UserError, match=r"covariance: 'ful' is not known; accepted: diagonal, full"):
        FittedStart.of(torch.randn(9, *SHAPE), "ful")
    for images in (torch.zeros(9, *SHAPE, dtype=torch.uint8), [[1], [2]]):
        with pytest.raises(UserError, match=r"^images: found torch.u?int.*; needs real numbers; model.fitted_start"):
            FittedStart.of(images)
    with pytest.raises(UserError, match=r"^mean: found \['a'\]; needs"):
        FittedStart(["a"], [1.0])
    assert FittedStart([0.0, 1.0], [1.0, 2.0]).variances.tolist() == [1.0, 2.0]
    of_lists = FittedStart.of([[0.0, 1.0], [2.0, 5.0]])
    assert of_lists.mean.tolist() == [1.0, 3.0]
    assert of_lists.variances.tolist() == [1.0, 4.0]
    fitted = FittedStart.of(torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(0)), "full")
    assert float(fitted.variances.min()) > 0


def test_on_a_path_that_ends_in_noise_it_changes_nothing():
    mean, covariance = moments("full")
    denoiser, x = Linear(mean, covariance, VP()), mean + 0.1 * torch.randn(3, *SHAPE, dtype=torch.float64)
    start = FittedStart(mean, covariance)
    found, plain = (
        diffusion.log_density(denoiser, x, trace="exact", tolerance=1e-7, **more)
        for more in ({"fitted_start": start}, {})
    )
    torch.testing.assert_close(found.log_prob, plain.log_prob, rtol=0, atol=1e-4)
