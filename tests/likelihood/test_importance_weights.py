"""The error of log-mean-exps covers the truth where weights are usable, and says so where they are not."""

import math

import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy.special import stdtrit
from scipy.stats import genpareto
from torch import Tensor

from diffusion.baselines.annealed import annealed_importance_sampling
from diffusion.baselines.importance_weighted import importance_weighted
from diffusion.commands.evaluation import weights_warning
from diffusion.likelihood import Estimate
from diffusion.likelihood.importance_weights import LogMeanExp, reliable_below, tail_shape, unreliable


def log_mean_exp(log_w: Tensor) -> LogMeanExp:
    total = LogMeanExp()
    total.add(log_w)
    return total


def covered(error: Tensor, std_error: Tensor, count: int) -> float:
    """Per cent of values within Student's 95 % interval."""
    return 100.0 * float((error.abs() <= stdtrit(count - 1, 0.975) * std_error).double().mean())


def delta_method(total: LogMeanExp) -> Tensor:
    w = (total.log_weights - total.log_weights.amax(1, keepdim=True)).exp()
    return w.std(1) / math.sqrt(total.count) / w.mean(1)


def log_normal(rows: int, count: int, deviation: float) -> tuple[LogMeanExp, float]:
    """Weights, and the log of their expectation."""
    generator = torch.Generator().manual_seed(1)
    log_w = deviation * torch.randn(rows, count, generator=generator, dtype=torch.float64)
    return log_mean_exp(log_w), 0.5 * deviation**2


@pytest.mark.parametrize("deviation", [0.3, 0.7, 1.0])
def test_log_normal_weights_are_covered_where_the_delta_method_is_not(deviation):
    total, truth = log_normal(5000, 48, deviation)
    error = total.value - truth
    stated, delta = covered(error, total.std_error, 48), covered(error, delta_method(total), 48)
    assert 92.5 < stated < 97.0, (stated, delta)
    assert stated >= delta
    assert deviation < 1.0 or delta < 91.0, (stated, delta)


def test_weights_without_skewness_have_the_error_of_the_delta_method():
    total = log_mean_exp(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], dtype=torch.float64).log())
    torch.testing.assert_close(total.std_error, delta_method(total), rtol=1e-9, atol=0)


@pytest.mark.parametrize("deviation", [6.0, 20.0])
def test_missing_weights_are_told_by_the_nats_that_they_are_missing(deviation):
    """Of log-normal weights, where the continuation is exact but for its noise; the delta method ends at one nat.

    It tells how much is missing, not what exactly: intervals of it hold less often than they say (docs/likelihood.md).
    """
    total, truth = log_normal(60, 20_000, deviation)
    missing = truth - total.value
    assert float(missing.median()) > 3.0
    assert float(delta_method(total).max()) <= 1.0
    assert float(total.std_error.mean() / missing.mean()) == pytest.approx(1.0, abs=0.5)
    assert covered(missing, total.std_error, 20_000) > covered(missing, delta_method(total), 20_000) + 30.0


def test_weights_of_zero_and_a_single_weight():
    log_w = torch.full((1, 60), -math.inf, dtype=torch.float64)
    assert log_mean_exp(log_w).std_error.isnan().all()
    log_w[0, 0] = 0.0
    total = log_mean_exp(log_w)
    assert float(total.value) == pytest.approx(-math.log(60.0))
    assert float(total.std_error) > 1.0
    assert float(total.diagnostics["tail_shape"]) > 10.0
    assert log_mean_exp(torch.zeros(3, 1)).std_error.isnan().all()


@pytest.mark.parametrize(
    ("shift", "stretch", "samples"), [(0.3, 1.2, 100), (-0.4, 1.3, 100), (-0.4, 1.3, 1000), (0.5, 1.0, 1000)]
)
def test_importance_weighted_bound_covers_the_likelihood(shift, stretch, samples):
    """100 data each of its own noise, proposals off the exact posterior in each of 8 dimensions."""
    model = LinearGaussian(dims=12, latent_dim=8, shift=shift, stretch=stretch)
    x = model.draw(100)
    estimate = importance_weighted(model, x, samples=samples)
    assert covered(estimate.log_prob - model.log_prob(x), estimate.std_error, samples) >= 90.0
    assert float(estimate.terms["tail_shape"].median()) < reliable_below(samples)


def test_annealed_importance_sampling_covers_the_likelihood():
    model = LinearGaussian(dims=12, latent_dim=8)
    x = model.draw(100)
    estimate = annealed_importance_sampling(model, x, steps=100, chains=16, leapfrog=4)
    assert covered(estimate.log_prob - model.log_prob(x), estimate.std_error, 16) >= 90.0
    assert not unreliable(estimate).any()


def test_a_hopeless_proposal_has_large_errors_and_says_so():
    """Three posterior deviations off in each of 8 dimensions: one effective sample, 19 nats below log p."""
    model = LinearGaussian(dims=12, latent_dim=8, shift=3.0)
    x = model.draw(100)
    estimate = importance_weighted(model, x, samples=100)
    missing = model.log_prob(x) - estimate.log_prob
    assert float(missing.mean()) > 10.0
    assert float(estimate.terms["log_effective_samples"].exp().median()) < 2.0
    assert float(estimate.std_error.median()) > 5.0
    assert 0.5 < float((estimate.std_error.square().mean() / missing.square().mean()).sqrt()) < 2.0
    assert float(estimate.terms["tail_shape"].median()) > 2.0
    assert unreliable(estimate).all()
    assert "unreliable for 100 of 100 images (their median tail shape 2." in str(weights_warning(estimate))


def test_a_hurried_annealing_has_large_errors_and_says_so():
    model = LinearGaussian(dims=12, latent_dim=8, noise=0.2)
    x = model.draw(40)
    estimate = annealed_importance_sampling(model, x, steps=2, chains=8, leapfrog=3)
    assert float((model.log_prob(x) - estimate.log_prob).mean()) > 10.0
    assert float(estimate.std_error.median()) > 10.0
    assert unreliable(estimate).double().mean() > 0.9
    assert "(fewer than 2 effective samples)" in str(weights_warning(estimate))


def test_no_warning_without_need():
    model = LinearGaussian()
    x = model.draw(3)
    assert weights_warning(importance_weighted(model, x, samples=100)) is None
    plain = Estimate(torch.zeros(2).double(), 3, None, torch.zeros(2).double(), "exact", {})
    assert unreliable(plain) is None
    assert weights_warning(plain) is None


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.6, 1.2])
def test_tail_shape_of_a_generalised_pareto_law(shape):
    """Its tail has the same shape; a fit to n exceedances has a deviation of (1 + k) / sqrt(n)."""
    w = torch.from_numpy(genpareto.rvs(shape, size=(50, 10_000), random_state=3))
    found = tail_shape(w.log())
    n = 300
    prior = (n * shape + 5.0) / (n + 10.0)  # what the weak prior at 1/2 makes of it
    assert float(found.mean()) == pytest.approx(prior, abs=4.0 * (1.0 + abs(shape)) / math.sqrt(50 * n))
    assert float(found.std()) == pytest.approx((1.0 + shape) / math.sqrt(n), rel=0.4)
    torch.testing.assert_close(tail_shape(w.log() - 3000.0), found, rtol=1e-6, atol=1e-6)


def test_weights_with_no_tail():
    assert tail_shape(torch.full((2, 100), -5.0).double()).tolist() == [0.0, 0.0]
    assert tail_shape(torch.zeros(2, 20).double()).isnan().all()
    assert reliable_below(100) == pytest.approx(0.5)
    assert reliable_below(10_000) == 0.7
