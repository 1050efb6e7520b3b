import math
from itertools import pairwise

import pytest
import torch
from linear_gaussian import LinearGaussian

from diffusion.baselines.importance_weighted import evidence_lower_bound, importance_weighted, kl_to_prior
from diffusion.errors import UserError
from diffusion.likelihood.importance_weights import LogMeanExp


def test_exact_posterior_as_proposal_gives_the_likelihood_without_error():
    model = LinearGaussian()
    x = model.draw(5)
    estimate = importance_weighted(model, x, samples=120)
    torch.testing.assert_close(estimate.log_prob, model.log_prob(x), rtol=0, atol=1e-10)
    assert (estimate.std_error < 1e-7).all()
    torch.testing.assert_close(estimate.terms["log_effective_samples"].exp(), torch.full((5,), 120.0).double())
    assert estimate.kind == "lower bound"
    assert estimate.levels is None
    assert estimate.nfe == 120
    assert estimate.protocol["samples"] == 120
    assert estimate.protocol["model"] == "linear Gaussian"


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.7, 1.0), (-0.3, 1.6), (0.2, 0.5)])
def test_elbo_gap_is_the_kl_to_the_posterior(shift, stretch):
    model = LinearGaussian(shift=shift, stretch=stretch)
    x = model.draw(50)
    estimate = evidence_lower_bound(model, x, samples=1000)
    gap = model.log_prob(x) - estimate.log_prob - model.kl_to_posterior()
    assert abs(float(gap.mean())) < 4.0 * float(estimate.std_error.square().mean().sqrt()) / math.sqrt(50)
    assert (gap.abs() < 5.0 * estimate.std_error).all()
    assert float((gap / estimate.std_error).std()) == pytest.approx(1.0, abs=0.35)
    # the mean of log w is the same quantity, with all of it sampled
    weighted = importance_weighted(model, x, samples=1000).terms["elbo"]
    assert abs(float((weighted - estimate.log_prob).mean())) < 0.05


def test_elbo_terms_are_closed_forms():
    model = LinearGaussian(shift=0.3, stretch=1.2)
    x = model.draw(4)
    estimate = evidence_lower_bound(model, x, samples=20)
    mean, std = model.proposal(x)
    q, p = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl_to_prior(mean, std), expected)
    torch.testing.assert_close(estimate.terms["prior"], -expected.sum(1))
    torch.testing.assert_close(estimate.terms["reconstruction"] + estimate.terms["prior"], estimate.log_prob)


def test_bound_grows_with_samples_in_expectation():
    model = LinearGaussian(shift=0.5, stretch=1.5)
    x = model.draw(400)
    bounds = [float(importance_weighted(model, x, samples=k).log_prob.mean()) for k in (1, 2, 5, 20, 100)]
    exact = float(model.log_prob(x).mean())
    assert all(low < high for low, high in pairwise(bounds))
    assert bounds[0] < exact - 0.5
    assert bounds[-1] == pytest.approx(exact, abs=0.05)
    # one sample in expectation is the ELBO; without the - log K the bounds would pass the likelihood
    assert bounds[0] == pytest.approx(exact - model.kl_to_posterior(), abs=0.35)


@pytest.mark.parametrize(("shift", "stretch"), [(0.3, 1.2), (-0.4, 1.3)])
def test_bad_proposal_in_8_dimensions_comes_within_its_stated_error(shift, stretch):
    """Deviations from the exact posterior in each of 8 latent dimensions; a KL of 0.5 and 1.1 nats."""
    model = LinearGaussian(dims=12, latent_dim=8, shift=shift, stretch=stretch)
    x = model.draw(40)
    assert model.kl_to_posterior() > 0.4
    estimate = importance_weighted(model, x, samples=5000)
    error = estimate.log_prob - model.log_prob(x)
    assert abs(float(error.mean())) < 1e-2
    assert (estimate.std_error < 0.06).all()
    assert ((error / estimate.std_error).abs() < 4.0).all()
    assert float((error / estimate.std_error).square().mean().sqrt()) == pytest.approx(1.0, abs=0.35)
    assert (estimate.terms["log_effective_samples"].exp() > 300).all()


def test_rows_do_not_depend_on_batches_and_samples_extend_each_other():
    model = LinearGaussian(shift=0.5)
    x = model.draw(7)
    whole = importance_weighted(model, x, samples=70, seed=3)
    parts = importance_weighted(model, x, samples=70, seed=3, batch_size=2)
    some = importance_weighted(model, x[4:6], samples=70, seed=3, indices=torch.tensor([4, 5]))
    torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=0, atol=1e-12)
    torch.testing.assert_close(some.log_prob, whole.log_prob[4:6], rtol=0, atol=1e-12)
    assert not torch.allclose(importance_weighted(model, x, samples=70, seed=4).log_prob, whole.log_prob)
    # the means of log w over 1, 2, ..., 6 samples tell each log w, and these the bound of 6
    runs = [importance_weighted(model, x, samples=k, seed=3) for k in range(1, 7)]
    log_w = torch.stack([k * run.terms["elbo"] for k, run in enumerate(runs, 1)])
    log_w = log_w.diff(dim=0, prepend=torch.zeros_like(log_w[:1]))
    torch.testing.assert_close(runs[-1].log_prob, log_w.logsumexp(0) - math.log(6), rtol=0, atol=1e-10)
    fewer = runs[0]
    assert fewer.std_error.isnan().all()
    torch.testing.assert_close(fewer.log_prob, fewer.terms["elbo"])


def test_log_mean_exp_of_parts_agrees_with_the_whole():
    generator = torch.Generator().manual_seed(0)
    log_w = 30.0 * torch.randn(6, 101, generator=generator, dtype=torch.float64) - 5000.0
    total = LogMeanExp()
    for part in log_w.split((1, 50, 50), dim=1):
        total.add(part)
    torch.testing.assert_close(total.value, log_w.logsumexp(1) - math.log(101))
    torch.testing.assert_close(total.mean_log, log_w.mean(1))
    w = (log_w - log_w.amax(1, keepdim=True)).exp()
    torch.testing.assert_close(total.effective_samples, w.sum(1) ** 2 / w.square().sum(1))


def test_weights_of_zero_are_no_numbers_lost():
    total = LogMeanExp()
    total.add(torch.tensor([[-math.inf, -math.inf]]))
    assert total.value.item() == -math.inf
    total.add(torch.tensor([[0.0, -math.inf]]))
    assert total.value.item() == pytest.approx(-math.log(4.0))


def test_float32_model_agrees_with_float64():
    double, single = (LinearGaussian(shift=0.3, dtype=dtype) for dtype in (torch.float64, torch.float32))
    x = double.draw(5)
    exact, found = (importance_weighted(m, x.to(m.dtype), samples=200) for m in (double, single))
    torch.testing.assert_close(found.log_prob, exact.log_prob, rtol=0, atol=1e-4)


def test_bad_arguments_are_refused():
    model = LinearGaussian()
    x = model.draw(3)
    for estimator in (importance_weighted, evidence_lower_bound):
        for options, message in [
            ({"samples": 0}, "samples: found 0"),
            ({"batch_size": 0}, "batch_size: found 0"),
            ({"indices": torch.arange(2)}, "indices: found 2 for 3 images"),
        ]:
            with pytest.raises(UserError, match=message):
                estimator(model, x, **options)
        with pytest.raises(UserError, match="images: found none"):
            estimator(model, x[:0])


def test_progress_and_budget():
    model = LinearGaussian(shift=0.3)
    calls = []
    x = model.draw(5)
    estimate = importance_weighted(
        model, x, samples=50, batch_size=2, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]
    assert set(estimate.error_budget) == {"samples", "test set"}
    assert 0 < estimate.error_budget["samples"] < estimate.error_budget["test set"]
