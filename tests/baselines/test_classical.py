"""Classical baselines: proper distributions, and figures on the digits that are known."""

import math

import pytest
import torch
from laws import f64

from diffusion.baselines.classical import IndependentPixels, gaussian_mixture, png
from diffusion.data import load_images
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.schedules import VP


def test_histogram_is_a_distribution_by_hand():
    train = torch.tensor([[0, 2], [0, 1], [2, 1]], dtype=torch.uint8)
    model = IndependentPixels.fit(train, levels=3, smoothing=0.5)
    torch.testing.assert_close(model.log_probs.exp().sum(1), torch.ones(2, dtype=torch.float64))
    images = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(torch.uint8)
    estimate = model.log_likelihood(images)
    assert float(estimate.log_prob.exp().sum()) == pytest.approx(1.0)
    assert float(estimate.log_prob[1]) == pytest.approx(math.log(2.5 / 4.5 * 2.5 / 4.5))  # levels (0, 1)
    assert estimate.kind == "exact"
    with pytest.raises(UserError, match="smoothing"):
        IndependentPixels.fit(train, levels=3, smoothing=0.0)


def test_histogram_of_the_digits():
    data = load_images("digits")
    interval = IndependentPixels.fit(data.train, data.levels).log_likelihood(data.test).mean()
    assert interval.mean == pytest.approx(2.43, abs=0.02)


@pytest.mark.parametrize("levels", [17, 256])
def test_mixture_of_gaussian_data_finds_its_entropy(levels):
    dequantizer = Dequantizer(levels)
    std = f64([0.2, 0.3])
    images = dequantizer.quantize(Gaussian(f64([0.1, -0.2]), std, VP()).draw(4000, seed=1))
    estimate = gaussian_mixture(images[:2000], images[2000:2500], images[2500:], dequantizer, components=(1, 3))
    entropy = (0.5 * torch.log(2 * math.pi * math.e * std**2)).mean() / math.log(2) - math.log2(dequantizer.width)
    interval = estimate.mean()
    assert interval.low - 0.02 < float(entropy) < interval.high
    assert estimate.protocol["components"] in (1, 3)
    assert estimate.kind == "lower bound"
    assert 0 < estimate.error_budget["draws"] < estimate.error_budget["test set"]
    with pytest.raises(UserError, match="components"):
        gaussian_mixture(images[:2], images[2:4], images[4:8], dequantizer, components=(5,))


def test_png_compresses_what_is_regular():
    noise = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    bits = png(torch.cat((torch.zeros_like(noise), noise))).bits_per_dim
    assert float(bits[:2].max()) < 1.5
    assert 8.0 < float(bits[2:].min()) < 9.5  # noise is stored as it is, with a header
    assert len(png(noise[:, :1])) == 2
    with pytest.raises(UserError, match="PNG takes 1 or 3"):
        png(noise[:, :2])
