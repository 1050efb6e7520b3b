"""The map between levels and numbers, at 2, 17 and 256 levels."""

import math

import pytest
import torch

from diffusion.data import pictures
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.likelihood import dequantization as module

LEVELS = [2, 17, 256]


def all_levels(levels):
    return torch.arange(levels, dtype=torch.uint8)[:, None]


@pytest.mark.parametrize("levels", LEVELS)
def test_round_trip(levels):
    dequantizer, images = Dequantizer(levels), all_levels(levels)
    assert torch.equal(dequantizer.quantize(dequantizer.center(images)), images)
    for u in (1e-6, 0.3, 1 - 1e-6):
        x = dequantizer.dequantize(images, torch.full(images.shape, u, dtype=torch.float64))
        assert bool((x.abs() < 1).all())
        assert torch.equal(dequantizer.quantize(x), images)
    assert torch.equal(
        dequantizer.quantize(torch.tensor([[-3.0], [3.0], [1.0]])).flatten().long(),
        torch.tensor([0, levels - 1, levels - 1]),
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_centers_are_nearest_and_symmetric(levels):
    centers = Dequantizer(levels).center(all_levels(levels), torch.float64).flatten()
    torch.testing.assert_close(centers, (2 * torch.arange(levels, dtype=torch.float64) + 1) / levels - 1)
    torch.testing.assert_close(centers, -centers.flip(0))
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    nearest = (x[:, None] - centers).abs().argmin(1)
    ties = ((x + 1) * levels / 2 % 1).minimum(1 - (x + 1) * levels / 2 % 1) < 1e-9  # the borders of bins
    assert torch.equal(Dequantizer(levels).quantize(x).long()[~ties], nearest[~ties])


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("std", [0.001, 0.05, 3.0])
def test_level_probabilities_sum_to_one(levels, std, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 7 * 5)  # pieces of seven levels, the last one smaller
    mean = torch.tensor([-1.2, -0.31, 0.0, 0.42, 1.0], dtype=torch.float64)
    images = all_levels(levels).expand(-1, 5).T.contiguous()  # (5, L): every level of every mean
    log_p = Dequantizer(levels).level_log_prob(images, mean[:, None].expand(-1, levels), torch.tensor(std).double())
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(5, dtype=torch.float64))
    centers = Dequantizer(levels).center(all_levels(levels), torch.float64).flatten()
    reference = torch.log_softmax(-((centers - mean[:, None]) ** 2) / (2 * std**2), dim=1)
    torch.testing.assert_close(log_p, reference)


@pytest.mark.parametrize("levels", LEVELS)
def test_density_integrates_to_probabilities(levels):
    """sum over u of p(x(u)) e^log_jacobian is the mass of the bin, and Jensen's bound lies below it."""
    dequantizer = Dequantizer(levels)
    normal = torch.distributions.Normal(torch.tensor(0.2, dtype=torch.float64), 0.5)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x = dequantizer.dequantize(all_levels(levels).expand(-1, 2000).contiguous(), u.expand(levels, -1))
    mass = normal.log_prob(x).exp().mean(1) * math.exp(dequantizer.log_jacobian(1))
    edges = torch.linspace(-1, 1, levels + 1, dtype=torch.float64)
    torch.testing.assert_close(mass, normal.cdf(edges).diff(), rtol=1e-5, atol=1e-12)
    assert bool((normal.log_prob(x).mean(1) + dequantizer.log_jacobian(1) <= mass.log() + 1e-12).all())
    assert dequantizer.log_jacobian(12) == pytest.approx(12 * math.log(2 / levels))


@pytest.mark.parametrize("levels", [2, 17, 100, 256])
def test_finer_greys_go_to_the_bin_of_their_centre_and_pictures_come_back(levels):
    fine, coarse = torch.arange(256), Dequantizer(levels)
    expected = [(2 * k + 1) * levels // 512 for k in range(256)]  # in whole numbers: floor((k + 1/2) L / 256)
    assert coarse.regraded(fine, 256).tolist() == expected
    own = torch.arange(levels)
    written = pictures.to_bytes(coarse.center(own)[:, None, None, None]).flatten()
    assert torch.equal(coarse.regraded(written, 256).long(), own), "a sample that was written as a picture"


def test_errors():
    with pytest.raises(UserError, match="levels: found 65537"):
        Dequantizer(65537)
    with pytest.raises(UserError, match="low < high"):
        Dequantizer(17, 1.0, -1.0)
    with pytest.raises(UserError, match="found level 17; accepted: 0 to 16"):
        Dequantizer(17).center(torch.tensor([[17]], dtype=torch.uint8))
