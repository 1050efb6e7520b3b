"""Normalisers: what they are fitted to, their inverse, their determinant, and what they refuse."""

import json
import math

import numpy as np
import pytest
import torch

from diffusion.config import Config, load_config
from diffusion.data import normalizer as normalizers
from diffusion.data.normalizer import Normalizer, fit
from diffusion.errors import UserError
from diffusion.models.build import build_data

SHAPES = [(4,), (2, 5), (3, 2, 2), (2, 2, 1, 3)]


def correlated(n, shape, seed=0, offset=1e6):
    """Correlated data far from 0, float64 (n, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    d = math.prod(shape)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + offset).reshape(n, *shape)


def fitted(kind, x):
    found = fit(kind, lambda: iter(x.split(37)), x.shape[1:])
    assert found is not None
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_standard_is_of_each_channel(shape):
    x = correlated(300, shape)
    z = fitted("standard", x).normalize(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(shape[0]).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.square().mean(1), torch.ones(shape[0]).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_data_have_the_unit_matrix_for_covariance(shape):
    x = correlated(300, shape)
    z = fitted("whiten", x).normalize(x).flatten(1)
    covariance = torch.cov(z.T, correction=0)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0))
    ridge = normalizers.RIDGE * float(eigenvalues.mean() / eigenvalues.min())  # what it takes from the least one
    torch.testing.assert_close(covariance, torch.eye(len(covariance)).double(), rtol=0, atol=1e-8 + 1.1 * ridge)


@pytest.mark.parametrize("kind", ["standard", "whiten"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_inverted_and_its_determinant_is_that_of_the_jacobian(kind, shape):
    x = correlated(300, shape)
    made = fitted(kind, x)
    torch.testing.assert_close(made.denormalize(made.normalize(x)), x, rtol=1e-12, atol=0)
    jacobian = torch.autograd.functional.jacobian(lambda y: made.normalize(y[None])[0].flatten(), x[0])
    log_det = torch.linalg.slogdet(jacobian.reshape(made.normalize(x[:1]).numel(), -1)).logabsdet
    assert made.log_det == pytest.approx(float(log_det), rel=1e-9)


@pytest.mark.parametrize("kind", ["standard", "whiten"])
def test_it_is_the_same_to_the_bit_after_json(kind):
    x = correlated(50, (3, 4))
    made = fitted(kind, x)
    again = Normalizer.from_plain(json.loads(json.dumps(made.to_plain())), (3, 4))
    assert torch.equal(again.normalize(x), made.normalize(x))
    assert again.log_det == made.log_det


def test_directions_do_not_depend_on_the_sign_that_a_library_finds(monkeypatch):
    x = correlated(100, (4,))
    made, eigh = fitted("whiten", x), torch.linalg.eigh

    def mirrored(matrix):
        variances, directions = eigh(matrix)
        return variances, -directions

    monkeypatch.setattr(torch.linalg, "eigh", mirrored)
    assert torch.equal(fitted("whiten", x).normalize(x), made.normalize(x))


def test_at_another_size_the_channels_are_the_same():
    x = correlated(50, (2, 3, 3))
    found = fitted("standard", x).at_shape((2, 6, 3))
    larger = x.repeat(1, 1, 2, 1)
    torch.testing.assert_close(found.denormalize(found.normalize(larger)), larger)
    assert found.log_det == pytest.approx(2 * fitted("standard", x).log_det)
    with pytest.raises(UserError, match="whitened"):
        fitted("whiten", x).at_shape((2, 6, 3))


def test_none_is_none():
    assert fit("none", lambda: iter([torch.zeros(2, 3)]), (3,)) is None


def test_directions_without_spread_are_scaled_by_the_ridge():
    """A table with a column twice: the difference of the two is 0, and stays finite."""
    x = correlated(200, (2,), offset=0.0)
    x = torch.cat((x, x[:, :1]), 1)
    made = fitted("whiten", x)
    z = made.normalize(x)
    assert float(made.variances[0]) == pytest.approx(
        1e-6 * float(made.variances.sub(made.variances[0]).mean()), rel=1e-3
    )
    assert float(z[:, 0].abs().max()) < 1e-5
    torch.testing.assert_close(made.denormalize(z), x, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_scaled_is_refused():
    x = torch.cat((torch.randn(20, 1, dtype=torch.float64), torch.full((20, 1), 3.5, dtype=torch.float64)), 1)
    with pytest.raises(UserError, match=r"channel 1 has the one value 3\.5"):
        fitted("standard", x)
    with pytest.raises(UserError, match="all training data are equal"):
        fitted("whiten", torch.ones(5, 3, dtype=torch.float64))
    with pytest.raises(UserError, match=r"1,025 numbers each; it takes up to 1,024; accepted: standard, none"):
        fitted("whiten", torch.randn(2, 1025))
    with pytest.raises(UserError, match="Did you mean 'whiten'"):
        fit("whitten", lambda: iter([x]), (2,))


GOOD = fitted("whiten", correlated(50, (2,))).to_plain()
BAD = {
    "another kind": {**GOOD, "kind": "none"},
    "a mean too few": {**GOOD, "mean": GOOD["mean"][:1]},
    "no number": {**GOOD, "mean": [float("nan"), 0.0]},
    "a variance of 0": {**GOOD, "variances": [0.0, 1.0]},
    "directions cut": {**GOOD, "directions": GOOD["directions"][:8]},
    "directions that are not orthogonal": {**GOOD, "directions": "AAAAAAAA8D8AAAAAAADwPwAAAAAAAPA/AAAAAAAA8D8="},
    "no directions": {key: value for key, value in GOOD.items() if key != "directions"},
}


@pytest.mark.parametrize("plain", BAD.values(), ids=BAD)
def test_a_damaged_one_is_refused(plain):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Normalizer.from_plain(plain, (2,))


@pytest.mark.parametrize("spread", [1e-5, 0.1])
def test_data_that_are_narrower_than_the_end_of_the_path_are_told_of(tmp_path, spread):
    """Of x and 3 x + spread e the narrow direction has the deviation spread / sqrt(2 (9 + spread^2)), standardised."""
    x, e = np.random.default_rng(0).normal(size=(2, 5000))
    np.save(tmp_path / "x.npy", np.stack((1e3 * x, 5.0 + 3.0 * x + spread * e), 1))
    config = load_config("table", [f"data.path={tmp_path / 'x.npy'}"])
    data = build_data(config)
    found = normalizers.narrowest(data.facts.normalizer, data.array.train)
    assert found == pytest.approx(spread / math.sqrt(2 * (9 + spread**2)), rel=0.1)
    told = "in some direction the deviation of the data is" in str(data.facts.provenance.get("notes"))
    assert told == (spread < 1e-3)
    adopted = build_data(Config(name="adopted", family="adopted", data=config.data))
    assert "in some direction" not in str(adopted.facts.provenance.get("notes")), "it has a path of its own"
    assert normalizers.narrowest(None, torch.randn(7, 2)) == math.inf, "too few to know"
    assert normalizers.narrowest(None, torch.zeros(9000, 2000)) == math.inf


@pytest.mark.parametrize("kind", ["standard", "whiten"])
def test_a_single_row_is_called_that(kind):
    with pytest.raises(UserError, match=f"found '{kind}' for a training part of 1 row; at least 2 have a spread"):
        fit(kind, lambda: [torch.ones(1, 3)], (3,))


@pytest.mark.parametrize("kind", ["standard", "whiten"])
@pytest.mark.parametrize("unit", [1e200, 1e-200])
def test_units_whose_squares_are_no_numbers_are_called_that(kind, unit):
    x = unit * (1.0 + torch.rand(50, 2, dtype=torch.float64))
    with pytest.raises(UserError, match=r"^data\.normalize: the numbers .* are up to \S+ in size, whose squares"):
        fit(kind, lambda: [x], (2,))


def test_a_sorted_table_is_looked_at_all_over():
    """A column of two values of a half each has the deviation 1 / 2, though the first rows have the same."""
    x = torch.stack((torch.randn(10000, generator=torch.Generator().manual_seed(0)), torch.arange(10000) // 5000), 1)
    assert normalizers.narrowest(None, x) == pytest.approx(0.5, rel=0.05)
