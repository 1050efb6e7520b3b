import pytest
import torch
import torch.nn.functional as F

from diffusion.errors import UserError
from diffusion.networks import UNet


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_defaults_have_the_published_size_of_ddpm_on_cifar10():
    with torch.device("meta"):
        assert count(UNet(3)) == 35_746_307  # "35.7 million", Ho et al. 2020, appendix B


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (12, 5), (28, 28)])
def test_any_size_and_number_of_channels(channels, size, waken):
    network = waken(UNet(channels, 4, (1, 1, 2, 2), 1, (4,), image_size=28))
    x = torch.randn(2, channels, *size)
    y = network(x, torch.zeros(2))
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert bool(y.std() > 0)
    torch.testing.assert_close(network(x[1:], torch.zeros(1)), y[1:])  # a row does not depend on others


@pytest.mark.parametrize("base_channels", [2, 6, 10, 36])
def test_odd_widths_work(base_channels, waken):
    network = waken(UNet(1, base_channels, (1, 3), 1, (), image_size=8))
    x = torch.randn(2, 1, 8, 8)
    y = network(x, torch.zeros(2))
    assert y.shape == x.shape
    assert bool(y.std() > 0)
    torch.testing.assert_close(network(x[1:], torch.zeros(1)), y[1:])  # a row does not depend on others


def test_padding_repeats_the_border_and_is_cropped_again(waken):
    network = waken(UNet(1, 8, (1, 1, 1), 1, (), image_size=8))
    x, c_noise = torch.randn(2, 1, 6, 7), torch.zeros(2)
    padded = F.pad(x, (0, 1, 1, 1), mode="replicate")  # to 8 x 8
    assert torch.equal(network(x, c_noise), network(padded, c_noise)[..., 1:7, 0:7])


def test_divisible_sizes_are_not_padded(monkeypatch, waken):
    network = waken(UNet(1, 8, (1, 1, 1), 1, (), image_size=8))
    x, c_noise = torch.randn(2, 1, 8, 12), torch.zeros(2)
    expected = network(x, c_noise)

    def no_padding(*_args, **_options):
        raise AssertionError("padded")

    monkeypatch.setattr("diffusion.networks.layers.F.pad", no_padding)
    assert torch.equal(network(x, c_noise), expected)
    with pytest.raises(AssertionError, match="padded"):
        network(x[..., 1:], c_noise)


def test_patches_are_channels(waken):
    """With patches of 2 x 2 it is the network of images of half the size and four times the channels."""
    patched = waken(UNet(3, 8, (1, 2), 1, (4,), image_size=16, out_channels=2, patch_size=2))
    inner = UNet(12, 8, (1, 2), 1, (4,), image_size=8, out_channels=8)
    inner.load_state_dict(patched.state_dict())
    inner.eval()
    x, c_noise = torch.randn(2, 3, 16, 16), torch.randn(2)
    blocks = x.reshape(2, 3, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 8)
    expected = inner(blocks, c_noise).reshape(2, 2, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 16, 16)
    assert patched.size_multiple == 4
    assert torch.equal(patched.eval()(x, c_noise), expected)
    assert patched(torch.randn(2, 3, 13, 18), c_noise).shape == (2, 2, 13, 18)


def test_translation_by_the_coarsest_cell_on_a_torus(waken):
    """Without attention and borders, a shift of x by whole cells of the coarsest level shifts the output alike."""
    network = waken(UNet(1, 8, (1, 1, 1), 1, (), image_size=8)).double()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
    network.middle_1.attention = torch.nn.Identity()
    x, c_noise = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    shifted = network(x.roll((4, 8), dims=(2, 3)), c_noise)
    torch.testing.assert_close(shifted, network(x, c_noise).roll((4, 8), dims=(2, 3)), rtol=1e-9, atol=1e-9)


def test_attention_is_counted_from_image_size():
    def attended(**options):
        network = UNet(1, 8, (1, 1, 1, 1), 1, **options)
        return [[hasattr(block.attention, "norm") for block in level.blocks] for level in network.down]

    assert attended(attention=(16, 4), image_size=32) == [[False], [True], [False], [True]]
    assert attended(attention=(16, 4), image_size=28) == [[False], [True], [False], [True]]
    assert attended(attention=(), image_size=28) == [[False]] * 4


def test_attention_follows_the_tokens_of_its_own_level():
    """At any size it stands at the same levels, and its scale is 1 / sqrt(d) for the size of training."""
    network = UNet(1, 8, (1, 1, 1), 1, (8, 4), image_size=(16, 8), attention_scale="entropy_invariant")
    trained = {8: (16 * 8) // 4, 4: (16 * 8) // 16}
    with pytest.raises(UserError, match="heights are 16, 8, 4"):
        UNet(1, 8, (1, 1, 1), 1, (2,), image_size=(16, 8))
    attended = [[b.attention.attention.train_tokens for b in level.blocks if hasattr(b.attention, "attention")]
                for level in network.down]  # fmt: skip
    assert attended == [[], [trained[8]], [trained[4]]]
    seen = []
    for level in network.down[1:]:
        level.blocks[0].attention.attention.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    for height, width in ((16, 8), (32, 24)):
        network(torch.randn(1, 1, height, width), torch.zeros(1))
        assert seen == [height * width // 4, height * width // 16]
        seen.clear()


def test_fourier_features_are_the_sines_and_cosines_beside_x():
    exponents = (2, 3)
    network = UNet(2, 8, (1,), 1, (), fourier_features=exponents)
    seen = []
    network.conv_in.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    x = torch.rand(2, 2, 4, 4) * 2 - 1
    network(x, torch.zeros(2))
    (features,) = seen
    assert features.shape == (2, 2 * 5, 4, 4)
    assert torch.equal(features[:, :2], x)
    waves = features[:, 2:].reshape(2, 4, 2, 4, 4)
    for i, n in enumerate(exponents):
        torch.testing.assert_close(waves[:, i], torch.sin(2**n * torch.pi * x), rtol=0, atol=1e-5)
        torch.testing.assert_close(waves[:, 2 + i], torch.cos(2**n * torch.pi * x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels: 0"),
        ({"base_channels": 7}, "base_channels: 7"),
        ({"base_channels": 0}, "base_channels: 0"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"blocks": 0}, "blocks: 0"),
        ({"attention": (5,)}, "heights are 32, 16, 8, 4"),
        ({"image_size": 0}, "image_size: 0"),
        ({"dropout": -0.1}, "dropout: -0.1"),
        ({"fourier_features": (-1,)}, "fourier_features"),
        ({"head_channels": 48}, "head_channels: 48 does not divide the 256"),
        ({"head_channels": 0}, "head_channels: 0"),
        ({"patch_size": 0}, "patch_size: 0"),
        ({"patch_size": 4}, "heights are 8, 4, 2, 1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        UNet(**{"in_channels": 3, **options})


def test_head_width_sets_the_number_of_heads_not_of_parameters():
    with torch.device("meta"):
        one, many = UNet(3), UNet(3, head_channels=64)
    assert one.middle_1.attention.attention.heads == 1
    assert many.middle_1.attention.attention.heads == 4
    assert count(one) == count(many)


def test_the_options_of_networks_made_elsewhere():
    """Norms of a given number of groups and epsilon, and halving that is padded on the right and below."""
    network = UNet(1, 8, (1, 2), 1, (), 0.0, norm_groups=2, norm_eps=1e-3, pad_end=True)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(2, 1e-3)}
    halve = network.down[1].downsample
    x = torch.randn(2, 8, 6, 4)
    weight, bias = halve.conv.weight, halve.conv.bias
    windows = F.unfold(F.pad(x, (0, 1, 0, 1)), 3, stride=2)  # the first window begins at the first pixel
    expected = (weight.flatten(1) @ windows + bias[:, None]).unflatten(2, (3, 2))
    torch.testing.assert_close(halve(x), expected)
