import math

import pytest
import torch
from torch import nn

from diffusion.networks.layers import crop_like, glorot, group_norm, pad_to_multiple
from diffusion.networks.residual import Downsample, ResidualBlock, Upsample


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7, 12, 30, 48, 96, 128, 384, 512])
def test_group_norm_fits_any_number_of_channels(channels):
    norm = group_norm(channels)
    assert norm.num_groups <= 32
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4
    if channels >= 128:
        assert norm.num_groups == 32


@pytest.mark.parametrize("layer", [nn.Linear(300, 200), nn.Conv2d(32, 64, 3)], ids=["linear", "conv"])
def test_glorot_variance(layer):
    receptive = 9 if layer.weight.dim() == 4 else 1
    fans = (layer.weight.shape[0] + layer.weight.shape[1]) * receptive
    glorot(layer)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.03)
    assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (7, 9), (8, 8)])
@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
def test_padding_is_the_least_that_divides_and_is_undone(size, multiple):
    x = torch.randn(2, 3, *size)
    padded = pad_to_multiple(x, multiple)
    assert padded.shape[-2:] == tuple(math.ceil(n / multiple) * multiple for n in size)
    assert torch.equal(crop_like(padded, x), x)
    if padded.shape == x.shape:
        assert padded is x


def test_residual_block_is_its_shortcut_at_initialisation():
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(ResidualBlock(8, 8, 16, dropout=0.5)(x, embedding), x)
    block = ResidualBlock(8, 12, 16, dropout=0.5)
    assert torch.equal(block(x, embedding), block.shortcut(x))


def test_sampling_layers_halve_and_double():
    x = torch.randn(2, 8, 6, 4)
    assert Downsample(8)(x).shape == (2, 8, 3, 2)
    assert Upsample(8)(x).shape == (2, 8, 12, 8)
