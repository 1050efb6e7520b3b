import math

import pytest
import torch
from linear_gaussian import LinearGaussian

from diffusion.baselines.annealed import annealed_importance_sampling, bidirectional, temperatures
from diffusion.errors import UserError

QUICK = {"steps": 12, "chains": 3, "leapfrog": 3}


def test_temperatures_run_from_0_to_1_closest_at_both_ends():
    betas = temperatures(50)
    gaps = betas.diff()
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    assert (gaps > 0).all()
    torch.testing.assert_close(gaps, gaps.flip(0))
    assert gaps[0] < gaps[25] / 5
    assert temperatures(1).tolist() == [0.0, 1.0]


def test_ais_comes_within_its_stated_error():
    """A second estimator that agrees with the closed form although its model has a proposal that is far off."""
    model = LinearGaussian(dims=12, latent_dim=8, shift=50.0)
    x = model.draw(24)
    estimate = annealed_importance_sampling(model, x, steps=150, chains=10, leapfrog=5)
    error = estimate.log_prob - model.log_prob(x)
    assert (estimate.std_error < 0.6).all()
    assert abs(float(error.mean())) < 0.15
    assert ((error / estimate.std_error).abs() < 5.0).all()
    assert estimate.kind == "lower bound"
    assert estimate.nfe == 14 * (1 + 149 * 5)
    assert estimate.protocol["steps"] == 150


def test_few_steps_give_a_lower_bound_and_more_come_closer():
    model = LinearGaussian(dims=12, latent_dim=8, noise=0.2)
    x = model.draw(40)
    exact = model.log_prob(x)
    gaps = [
        float((exact - annealed_importance_sampling(model, x, steps=steps, chains=2, leapfrog=3).log_prob).mean())
        for steps in (2, 10, 50)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -0.3
    assert gaps[0] > 5.0


def test_both_directions_bracket_the_likelihood():
    model = LinearGaussian(dims=12, latent_dim=8, noise=0.3)
    bracket = bidirectional(model, 40, steps=40, chains=2, leapfrog=4)
    exact = model.log_prob(bracket.x)
    below, above = (exact - bracket.lower).double(), (bracket.upper - exact).double()
    for gap in (below, above):  # in expectation: by two standard errors of the mean
        assert float(gap.mean()) > 2.0 * float(gap.std()) / math.sqrt(40)
    closer = bidirectional(model, 40, steps=200, chains=8, leapfrog=4)
    assert 0.0 < closer.gap < 0.3 * bracket.gap
    exact = float(model.log_prob(closer.x).mean())
    assert float(closer.lower.mean()) == pytest.approx(exact, abs=0.5)
    assert float(closer.upper.mean()) == pytest.approx(exact, abs=0.5)


def test_bracket_data_come_from_the_model():
    model = LinearGaussian()
    bracket = bidirectional(model, 500, steps=1, chains=1, leapfrog=1)
    assert bracket.z.mean(0).abs().max() < 0.2
    residual = bracket.x - bracket.z @ model.weight.T - model.bias
    assert float(residual.std()) == pytest.approx(model.noise, rel=0.05)
    # one step: the weight is p(x | z) of a prior sample forwards, and of the very z backwards
    torch.testing.assert_close(bracket.upper, model.log_prob_given(bracket.x, bracket.z))
    assert bracket.lower_error.isnan().all()


def test_chains_end_in_the_posterior():
    """With many steps all chains weigh the same, and their effective number is their number."""
    model = LinearGaussian(dims=6, latent_dim=2, noise=1.0)
    x = model.draw(6)
    estimate = annealed_importance_sampling(model, x, steps=150, chains=5, leapfrog=5)
    assert (estimate.terms["log_effective_samples"].exp() > 4.3).all()
    torch.testing.assert_close(estimate.log_prob, model.log_prob(x), rtol=0, atol=0.35)


def test_rows_do_not_depend_on_batches():
    model = LinearGaussian()
    x = model.draw(5)
    whole = annealed_importance_sampling(model, x, **QUICK)
    parts = annealed_importance_sampling(model, x, batch_size=2, **QUICK)
    some = annealed_importance_sampling(model, x[3:], indices=torch.tensor([3, 4]), **QUICK)
    torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=0, atol=1e-8)
    torch.testing.assert_close(some.log_prob, whole.log_prob[3:], rtol=0, atol=1e-8)


def test_a_step_that_diverges_is_refused():
    """A likelihood so narrow that the first steps leave the range of float32: finite, and still a lower bound.

    The estimate of p is unbiased, so that it is e^m times too large with a probability of at most e^-m (Markov).
    """
    model = LinearGaussian(dims=4, latent_dim=2, noise=1e-3, dtype=torch.float32)
    x = model.draw(4)
    estimate = annealed_importance_sampling(model, x, steps=40, chains=2, leapfrog=10)
    assert estimate.log_prob.isfinite().all()
    assert (estimate.log_prob < model.log_prob(x) + 7.0).all()


@pytest.mark.parametrize("name", ["steps", "chains", "leapfrog"])
def test_bad_settings_are_refused(name):
    model = LinearGaussian()
    with pytest.raises(UserError, match=f"{name}: found 0"):
        annealed_importance_sampling(model, model.draw(1), **{name: 0})
    with pytest.raises(UserError, match=f"{name}: found 0"):
        bidirectional(model, 1, **{name: 0})
