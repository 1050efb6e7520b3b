"""Toy distributions: densities that integrate to one or are those of a matrix, draws that follow them."""

import math
from functools import cache

import pytest
import torch

from diffusion.data import AutoregressiveToy, Checkerboard, MixtureToy, load_toy, toy_names
from diffusion.errors import UserError

PLANAR = [name for name in toy_names() if load_toy(name).shape == (2,)]
AUTOREGRESSIVE = [name for name in toy_names() if name not in PLANAR]


def grid(half_width: float, n: int) -> tuple[torch.Tensor, float]:
    """Midpoints of an n x n grid over [-half_width, half_width]^2 and the area of a cell."""
    width = 2 * half_width / n
    middles = -half_width + width * (torch.arange(n, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(middles, middles), width**2


@cache
def quadrature(name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    toy = load_toy(name)
    # The checkerboard's squares end on cell borders of its own grid, where the midpoint rule is exact.
    if isinstance(toy, Checkerboard):
        x, area = grid(toy.half_width, 40)
    else:
        assert isinstance(toy, MixtureToy)
        half_width = toy.means.abs().max().item() + 7 * toy.stds.max().item()
        x, area = grid(half_width, int(2 * half_width / (0.9 * toy.stds.min().item())))
    return x, toy.log_prob(x), area


@pytest.mark.parametrize("name", PLANAR)
def test_density_integrates_to_one_with_unit_moments(name: str) -> None:
    x, log_prob, area = quadrature(name)
    p = log_prob.exp() * area
    assert abs(p.sum().item() - 1) < 1e-3
    mean = (p[:, None] * x).sum(0)
    assert mean.abs().max() < 1e-3
    # The midpoint rule is off by width^2 / 12 in the variance of a uniform density.
    assert abs((p[:, None] * x.square()).sum().item() / 2 - 1) < 2e-3


@pytest.mark.parametrize("name", PLANAR)
def test_draws_have_the_entropy_of_the_density(name: str) -> None:
    toy = load_toy(name)
    _, log_prob, area = quadrature(name)
    p = log_prob.exp() * area
    entropy = -(p * log_prob.masked_fill(p == 0, 0)).sum().item()
    drawn = toy.log_prob(toy.draw(8_000, seed=1)).double()
    # No draw of the checkerboard may fall on a square without density, so that its deviation is zero.
    assert abs(-drawn.mean().item() - entropy) < 4 * drawn.std().item() / math.sqrt(8_000) + 1e-3


@pytest.mark.parametrize("name", PLANAR)
def test_histogram_of_draws(name: str) -> None:
    toy = load_toy(name)
    n, cells, half_width = 50_000, 8, math.sqrt(3)
    x, area = grid(half_width, 120)
    cell = torch.floor((x / half_width + 1) * cells / 2) @ torch.tensor([cells, 1.0], dtype=torch.float64)
    expected = torch.zeros(cells**2, dtype=torch.float64).index_add_(0, cell.long(), toy.log_prob(x).exp() * area)
    draws = toy.draw(n, seed=2).double()
    draws = draws[(draws.abs() < half_width).all(1)]
    place = torch.floor((draws / half_width + 1) * cells / 2) @ torch.tensor([cells, 1.0], dtype=torch.float64)
    found = torch.bincount(place.long(), minlength=cells**2).double() / n
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 2e-4).all()


@pytest.mark.parametrize("name", toy_names())
def test_draws_are_keyed_by_seed_and_index(name: str) -> None:
    toy = load_toy(name)
    x = toy.draw(50, seed=7)
    assert x.shape == (50, *toy.shape)
    assert x.dtype == torch.float32
    assert toy.draw(50, seed=7).equal(x)
    assert toy.draw(20, seed=7).equal(x[:20])
    assert not toy.draw(50, seed=8).equal(x)


def test_mixture_by_hand_and_its_gradient() -> None:
    means = torch.tensor([[0.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    stds = torch.tensor([0.5, 1.0], dtype=torch.float64)
    toy = MixtureToy(means, stds, torch.tensor([0.25, 0.75], dtype=torch.float64))
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    parts = [
        w * torch.distributions.MultivariateNormal(m, s**2 * torch.eye(2, dtype=torch.float64)).log_prob(x[0]).exp()
        for w, m, s in zip((0.25, 0.75), means, stds, strict=True)
    ]
    log_prob = toy.log_prob(x)
    torch.testing.assert_close(log_prob[0], sum(parts).log())  # type: ignore[union-attr]
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    pull = [part * (m - x[0]) / s**2 for part, m, s in zip(parts, means, stds, strict=True)]
    torch.testing.assert_close(score[0], (pull[0] + pull[1]) / (parts[0] + parts[1]))


def test_blocks_do_not_change_the_density() -> None:
    toy = load_toy("spiral")
    x = toy.draw(11_000, seed=0)  # 400 components: more than one block
    assert toy.log_prob(x)[-5:].equal(toy.log_prob(x[-5:]))


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="Did you mean 'moons'"):
        load_toy("moon")


def covariance(toy: AutoregressiveToy) -> torch.Tensor:
    """The matrix of all coordinates, from a^(distance along the sides) and independent channels."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in toy.shape)).double()
    channels, sides = places[:, :1], places[:, 1:]
    distance = torch.cdist(sides, sides, p=1)
    return toy.a**distance * (torch.cdist(channels, channels) == 0)


@pytest.mark.parametrize("shape", [(1, 6), (2, 5), (1, 3, 4), (2, 2, 3, 2)])
def test_autoregressive_density_is_that_of_the_matrix(shape: tuple[int, ...]) -> None:
    toy = AutoregressiveToy(shape, -0.6)
    normal = torch.distributions.MultivariateNormal(torch.zeros(math.prod(shape)).double(), covariance(toy))
    x = 1.5 * toy.draw(20, seed=3).double()
    torch.testing.assert_close(toy.log_prob(x), normal.log_prob(x.flatten(1)), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive_draws_have_its_autocovariance_and_entropy(name: str) -> None:
    toy = load_toy(name)
    assert isinstance(toy, AutoregressiveToy)
    n = 4_000
    x = toy.draw(n, seed=1).double()
    for axis in range(2, x.ndim):
        for lag in (0, 1, 3):
            length = x.shape[axis] - lag
            products = (x.narrow(axis, 0, length) * x.narrow(axis, lag, length)).flatten(1).mean(1)
            assert abs(products.mean() - toy.a**lag) < 4 * products.std() / math.sqrt(n)
    drawn = toy.log_prob(x)
    # E |z|^2 = D, so that the mean of -log p is the entropy; its deviation is sqrt(D / 2)
    d = math.prod(toy.shape)
    sides = [math.log(1 - toy.a**2) * (side - 1) / side for side in toy.shape[1:]]
    entropy = 0.5 * d * (math.log(2 * math.pi * math.e) + sum(sides))
    assert abs(-drawn.mean() - entropy) < 4 * math.sqrt(d / 2 / n)
