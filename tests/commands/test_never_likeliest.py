"""Levels that a linear head can never find the likeliest, against convex hulls and the best of many features."""

import pytest
import torch
from scipy.spatial import ConvexHull

from diffusion.commands.check.levels import head_of, lines, never_likeliest, with_own_value
from diffusion.denoisers import LevelDenoiser
from diffusion.likelihood import Dequantizer
from diffusion.networks import DiT, UNet
from diffusion.schedules import Cosine

F64 = torch.float64


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.quick
@pytest.mark.parametrize(("levels", "features"), [(12, 2), (20, 3)])
def test_without_biases_they_are_the_points_within_the_convex_hull(levels, features):
    weights = normals(levels, features)
    inside = sorted(set(range(levels)) - set(ConvexHull(weights.numpy()).vertices.tolist()))
    assert inside
    assert never_likeliest(weights, torch.zeros(levels)) == inside


@pytest.mark.quick
def test_with_biases_no_feature_finds_them_and_some_feature_finds_each_other():
    weights, biases = normals(9, 1), 0.3 * normals(9, seed=1)
    h = torch.linspace(-200, 200, 400_001, dtype=F64)
    seen = set((h[:, None] * weights[:, 0] + biases).argmax(1).tolist())
    assert sorted(set(range(9)) - seen) == never_likeliest(weights, biases) != []


@pytest.mark.quick
def test_in_the_middle_of_a_line_a_level_needs_a_bias_or_a_feature():
    weights = torch.tensor([[-1.0], [0.0], [1.0]])
    assert never_likeliest(weights, torch.zeros(3)) == [1]  # a tie at most
    assert never_likeliest(weights, torch.tensor([0.0, 0.5, 0.0])) == []
    assert never_likeliest(torch.eye(3), torch.zeros(3)) == []
    # its own noisy value tells each level from the others at any noise, as log-odds are a parabola of the level
    places = Dequantizer(3).places()
    assert never_likeliest(*with_own_value(weights, torch.zeros(3), places, -2.0)) == []
    assert never_likeliest(*with_own_value(torch.zeros(3, 2), torch.zeros(3), places, -2.0)) == []
    # against a bias it needs little noise: level 1 has c = 0 and gains alpha^2 c^2 / (2 sigma^2) on its neighbours
    biases = torch.tensor([1.0, 0.0, 1.0])
    edge = 2.0 / float(places[2]) ** 2
    for factor, expected in ((0.9, [1]), (1.1, [])):
        log_snr = float(torch.log(torch.tensor(factor * edge)))
        assert never_likeliest(*with_own_value(torch.zeros(3, 1), biases, places, log_snr)) == expected


@pytest.mark.quick
@pytest.mark.parametrize(
    "network",
    [
        lambda out: UNet(2, 8, (1,), 1, (), image_size=8, out_channels=out, patch_size=2),
        lambda out: DiT(2, 2, width=8, depth=1, heads=2, image_size=8, out_channels=out),
    ],
    ids=["unet", "dit"],
)
def test_the_head_is_what_the_network_computes_with(network):
    """Of features that are one of each kind, log-odds are the weights themselves: taken apart as the denoiser does."""
    levels, last = 5, None
    model = LevelDenoiser(network(2 * levels), Cosine(), Dequantizer(levels).places(), (2, 8, 8))
    for name in ("conv_out", "dense_out"):
        last = getattr(model.network, name, last)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.randn(last.bias.shape))
        raw = model.network(torch.zeros(1, 2, 8, 8), torch.zeros(1)).unflatten(1, (2, levels))
    weights, biases = head_of(model)
    assert weights.shape[:2] == biases.shape == (2 * 4, levels)
    at = {(c, row, column): raw[0, c, :, row, column] for c in range(2) for row in range(2) for column in range(2)}
    for found, expected in zip(biases, at.values(), strict=True):
        assert torch.equal(found, expected)
    assert lines(model)[0].startswith("levels that can never be the likeliest by the network alone")
    with torch.no_grad():
        last.weight.normal_()
    assert lines(model) == ["levels: each of the 5 can be the likeliest, in every of 8 outputs"]
