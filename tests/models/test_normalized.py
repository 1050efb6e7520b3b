"""Models of data in the user's units: the likelihood of a Gaussian does not depend on the normaliser."""

import math

import pytest
import torch
from tiny_configs import toy_config

import diffusion
from diffusion.data import normalizer as normalizers
from diffusion.denoisers import Denoiser
from diffusion.models import DiffusionModel
from diffusion.models.build import DataFacts
from diffusion.schedules import VP

D = 5
MIX = 0.3 * torch.randn(D, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + torch.eye(D)
# entries of quite unlike units: deviations from 0.02 to 500, means far from 0
UNITS = torch.tensor([0.01, 200.0, 1.0, 0.3, 30.0], dtype=torch.float64)
MEAN = torch.tensor([5.0, -1e4, 0.0, 7.0, 1e5], dtype=torch.float64)
LAW = torch.distributions.MultivariateNormal(MEAN, (MIX @ MIX.T) * UNITS * UNITS[:, None])


class FullGaussian(Denoiser):
    """E[x | x_t] of N(mean, covariance): mean + alpha S (alpha^2 S + sigma^2)^-1 (x_t - alpha mean)."""

    def __init__(self, mean, covariance, shape):
        super().__init__()
        self.schedule, self.shape, self.mean, self.covariance = VP(), shape, mean, covariance

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (value.double().expand(len(x_t))[:, None, None] for value in self.schedule(t))
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean))
        gap = x_t.double().flatten(1) - alpha[:, 0] * self.mean
        x_hat = self.mean + (alpha * self.covariance @ torch.linalg.solve(total, gap[..., None]))[..., 0]
        return x_hat.reshape(x_t.shape).to(x_t.dtype)


def model(kind, tmp_path, shape=(D,), scale=1.0, shift=0.0):
    """The exact model of the law behind a normaliser that is fitted on draws, as one in training would be."""
    torch.manual_seed(0)
    draws = ((LAW.sample((2_000,)) - shift) / scale).reshape(-1, *shape)
    made = normalizers.fit(kind, lambda: iter([draws]), shape)
    ends = torch.cat((torch.zeros(1, D), torch.eye(D))).double().reshape(-1, *shape)
    # x = zero + z A: what the normaliser does is read off, and not taken from its fields
    back = (ends if made is None else made.denormalize(ends)).flatten(1)
    zero, directions = back[0], back[1:] - back[0]
    inverse = torch.linalg.inv(directions)
    scales = torch.ones(D).double() * scale
    covariance = LAW.covariance_matrix / (scales * scales[:, None])
    mean, covariance = (
        ((MEAN - shift) / scale - zero) @ inverse,
        inverse.T @ covariance @ inverse,
    )
    facts = DataFacts("array", shape, None, 0, normalizer=made)
    return DiffusionModel(FullGaussian(mean, covariance, shape), toy_config(tmp_path), facts)


@pytest.mark.parametrize("shape", [(D,), (1, D)])
@pytest.mark.parametrize("kind", ["standard", "whiten"])
def test_the_likelihood_of_a_gaussian_is_that_of_its_own_units(kind, shape, tmp_path):
    torch.manual_seed(1)
    x = LAW.sample((16,))
    if kind == "standard" and shape[0] == 1:
        pytest.skip("one deviation for entries of units from 0.01 to 200 leaves some below the noise of t_min")
    made = model(kind, tmp_path, shape)
    for method, options in (("ode", {"tolerance": 1e-6}), ("immse", {"evaluations": 512})):
        estimate = diffusion.log_density(made, x.reshape(-1, *shape), method=method, **options)
        error = (estimate.log_prob - LAW.log_prob(x)).abs()
        assert float(error.max()) < (2e-3 if method == "ode" else 4 * float(estimate.std_error.max()) + 0.05), method
    assert estimate.protocol["normalizer"] == kind
    assert float(estimate.nats_per_dim.mean()) == pytest.approx(-float(estimate.log_prob.mean()) / D)


def test_all_normalisers_give_the_same(tmp_path):
    """Also none, for data whose deviations are not far from 1."""
    torch.manual_seed(2)
    shift = MEAN - UNITS
    x = (LAW.sample((8,)) - shift) / UNITS
    found = {}
    for kind in normalizers.KINDS:
        found[kind] = diffusion.log_density(model(kind, tmp_path, (D,), UNITS, shift), x, tolerance=1e-6).log_prob
    truth = LAW.log_prob(x * UNITS + shift) + float(UNITS.log().sum())
    for kind, log_prob in found.items():
        assert float((log_prob - truth).abs().max()) < 2e-3, kind


@pytest.mark.parametrize("kind", ["standard", "whiten"])
def test_samples_are_of_its_own_units(kind, tmp_path):
    n = 2_000
    x = diffusion.sample(model(kind, tmp_path), n, sampler="heun", steps=40, dtype="float64")
    deviations = LAW.variance.sqrt()
    assert x.dtype == torch.float64
    assert float(((x.mean(0) - MEAN) / deviations).abs().max()) < 5 / math.sqrt(n)
    z = torch.linalg.solve_triangular(LAW.scale_tril, (x - MEAN).T, upper=False)
    torch.testing.assert_close(torch.cov(z), torch.eye(D).double(), rtol=0, atol=6 / math.sqrt(n))


def test_encoding_and_editing_take_and_leave_its_own_units(tmp_path):
    made = model("whiten", tmp_path)
    torch.manual_seed(3)
    x = LAW.sample((3,))
    noise = diffusion.encode(made, x, sampler="heun", steps=60)
    back = made.sample(3, sampler="heun", steps=60, noise=noise)
    assert float(((back - x) / LAW.variance.sqrt()).abs().max()) < 0.02
    edited = diffusion.edit(made, x, strength=0.02, sampler="heun", steps=60)
    assert float(((edited - x) / LAW.variance.sqrt()).abs().max()) < 0.5


def test_facts_keep_it_and_refuse_a_damaged_one(tmp_path):
    facts = model("whiten", tmp_path).facts
    again = DataFacts.from_json(facts.to_json())
    x = LAW.sample((3,))
    assert torch.equal(again.normalizer.normalize(x), facts.normalizer.normalize(x))
    assert again.plain == facts.plain
    for damage in (("whiten", "whitten"), ('"levels": null', '"levels": 256'), ('"mean": [', '"mean": [1, ')):
        with pytest.raises(ValueError, match="not the facts of a data set"):
            DataFacts.from_json(facts.to_json().replace(*damage))
