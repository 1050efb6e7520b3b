import math

import pytest
import torch
import torch.nn.functional as F

from diffusion.errors import UserError
from diffusion.networks import DiT
from diffusion.networks.dit import grid_positions, stretched


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_defaults_have_the_published_size_of_dit_s_2():
    """33 million (Peebles & Xie 2023, table 1), here without the half of the output that predicts a variance."""
    with torch.device("meta"):
        network = DiT(4, num_classes=1000)
    block = 18 * 384**2 + 15 * 384  # qkv 3, out 1, perceptron 8, modulation 6; biases 3 + 1 + 5 + 6
    around = (256 * 384 + 384) + (384**2 + 384) + 1001 * 384 + (16 * 384 + 384) + 2 * (384**2 + 384) + (384 * 16 + 16)
    assert count(network) == 12 * block + around
    assert abs(count(network) - 33e6) < 0.2e6


@pytest.mark.parametrize("patch_size", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (6, 6), (7, 9)])
def test_any_size_and_number_of_channels(patch_size, size, waken):
    for channels in (1, 3):
        network = waken(DiT(channels, patch_size, width=8, depth=1, heads=2))
        x = torch.randn(2, channels, *size)
        y = network(x, torch.zeros(2))
        assert y.shape == x.shape
        assert y.isfinite().all()
        assert bool(y.std() > 0)
        torch.testing.assert_close(network(x[1:], torch.zeros(1)), y[1:])  # a row does not depend on others


def test_padding_repeats_the_border_and_is_cropped_again(waken):
    network = waken(DiT(1, 4, width=8, depth=1, heads=2))
    x, c_noise = torch.randn(2, 1, 6, 7), torch.zeros(2)
    padded = F.pad(x, (0, 1, 1, 1), mode="replicate")
    assert torch.equal(network(x, c_noise), network(padded, c_noise)[..., 1:7, 0:7])


def test_positions_are_the_sines_and_cosines_of_row_and_column():
    width, rows, columns = 16, 3, 5
    found = grid_positions([torch.arange(n, dtype=torch.float64) for n in (rows, columns)], width)
    assert found.shape == (rows * columns, width)
    for row in range(rows):
        for column in range(columns):
            waves = []
            for position in (row, column):
                angles = [position / 10_000 ** (i / (width // 4)) for i in range(width // 4)]
                waves += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected = torch.tensor(waves, dtype=torch.float64)
            torch.testing.assert_close(found[row * columns + column], expected, rtol=0, atol=1e-12)


def test_the_places_of_patches_are_stretched_over_those_of_training():
    """The middle of the picture stays where it is, and the ends; at the size of training nothing changes."""
    like = torch.zeros((), dtype=torch.float64)
    assert stretched(4, 4, like).tolist() == [0, 1, 2, 3]
    assert stretched(8, 4, like).tolist() == [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]
    assert stretched(2, 4, like).tolist() == [0.5, 2.5], "the means of the patches that each stands for"
    assert stretched(6, 3, like).mean() == stretched(3, 3, like).mean() == 1.0


def test_each_side_is_stretched_by_itself(monkeypatch, waken):
    network = waken(DiT(1, 2, width=8, depth=1, heads=2, image_size=(4, 6)))
    asked = []

    def positions(coordinates, width):
        asked.append(tuple(along.tolist() for along in coordinates))
        return grid_positions(coordinates, width)

    monkeypatch.setattr("diffusion.networks.dit.grid_positions", positions)
    for size in ((4, 6), (8, 6), (4, 3)):
        network(torch.randn(2, 1, *size), torch.zeros(2))
    assert asked == [([0, 1], [0, 1, 2]), ([-0.25, 0.25, 0.75, 1.25], [0, 1, 2]), ([0, 1], [0.25, 1.75])]


def permute_patches(x, order, p):
    patches = F.unfold(x, p, stride=p)[..., order]
    return F.fold(patches, x.shape[-2:], p, stride=p)


def test_only_the_positions_tell_patches_apart(monkeypatch, waken):
    network = waken(DiT(2, 2, width=16, depth=2, heads=2)).double()
    x, c_noise = torch.randn(2, 2, 4, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = permute_patches(x, order, 2)
    with_positions = network(permuted, c_noise) - permute_patches(network(x, c_noise), order, 2)
    assert with_positions.abs().max() > 1e-3
    monkeypatch.setattr("diffusion.networks.dit.grid_positions", lambda *_args, **_options: 0.0)
    torch.testing.assert_close(
        network(permuted, c_noise), permute_patches(network(x, c_noise), order, 2), rtol=1e-9, atol=1e-9
    )


def test_blocks_are_the_identity_at_initialisation():
    network = DiT(1, width=16, depth=2, heads=2)
    tokens, embedding = torch.randn(2, 5, 16), torch.randn(2, 16)
    for block in network.blocks:
        assert torch.equal(block(tokens, embedding), tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels: 0"),
        ({"patch_size": 0}, "patch_size: 0"),
        ({"depth": 0}, "depth: 0"),
        ({"mlp_ratio": 0}, "mlp_ratio: 0"),
        ({"width": 6}, "width: 6"),
        ({"heads": 5}, "heads: 5 does not divide the 384"),
        ({"heads": 0}, "heads: 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        DiT(**{"in_channels": 3, **options})
