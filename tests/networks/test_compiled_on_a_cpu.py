"""What a network computes another way when it is compiled for a CPU is what it computes otherwise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion.networks import attention
from diffusion.networks.attention import FEW, TokenAttention
from diffusion.networks.layers import channels_last, group_norm


@pytest.fixture
def compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(result, *inputs):
    weights = normal(*result.shape, seed=9).to(result.dtype)
    return torch.autograd.grad((result * weights).sum(), inputs)


@pytest.mark.parametrize("std", [2.0, 0.3, 0.1], ids=lambda std: f"mean {3 / std:.0f} deviations")
def test_a_group_norm_of_images_with_channels_last(compiling, std):
    """In the autocast of training, which makes products those of bf16."""
    norm = group_norm(24)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(24, seed=1))
        norm.bias.copy_(normal(24, seed=2))
    x = last((3 + std * normal(3, 24, 8, 6)).to(torch.bfloat16))
    exact, weight, bias = (of.detach().double().requires_grad_() for of in (x, norm.weight, norm.bias))
    expected = F.group_norm(exact, norm.num_groups, weight, bias, norm.eps)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x.requires_grad_())
    assert found.dtype == torch.bfloat16
    assert found.stride() == x.stride()
    rounding = 2**-8
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=1e-4)
    for one, other in zip(
        gradients(found, x, norm.weight, norm.bias), gradients(expected, exact, weight, bias), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=rounding, atol=4 * rounding * float(other.abs().mean()))


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("level", [0.0, 30.0, -1e3])
def test_a_group_norm_of_one_value(compiling, level):
    found = group_norm(8)(last(torch.full((2, 8, 5, 5), level).to(torch.bfloat16)))
    torch.testing.assert_close(found.float(), torch.zeros(2, 8, 5, 5), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("x", "compiled"),
    [(normal(2, 8, 5, 5).bfloat16(), True), (last(normal(2, 8, 5, 5).float()), True),
     (last(normal(2, 8, 5, 5).bfloat16()), False), (normal(2, 8, 40).bfloat16(), True),
     (normal(2, 8, 4, 3, 5).bfloat16(), True)],
    ids=["channels first", "float32", "not compiled", "signals", "volumes"],
)  # fmt: skip
def test_others_are_normalised_as_torch_does_it(monkeypatch, x, compiled):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    norm = group_norm(8).to(x.dtype)
    torch.testing.assert_close(norm(x), nn.GroupNorm(2, 8, dtype=x.dtype)(x), rtol=0, atol=0)


@pytest.mark.parametrize("follow", [None, 20], ids=["constant", "entropy invariant"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.bfloat16, 2**-7)], ids=str)
def test_attention_among_few_tokens(monkeypatch, follow, dtype, error):
    layer, tokens = TokenAttention(16, 2, follow), normal(2, 49, 16)
    exact = copy.deepcopy(layer).double()
    tokens = tokens.to(dtype).requires_grad_()
    layer = layer.to(dtype)
    exact.load_state_dict(layer.state_dict())
    of = tokens.detach().double().requires_grad_()
    expected = exact(of)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(attention.F, "scaled_dot_product_attention", None)  # not called
        found = layer(tokens)
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)
    (one,), (other,) = gradients(found, tokens), gradients(expected, of)
    torch.testing.assert_close(one.double(), other, rtol=error, atol=4 * error * float(other.abs().mean()))


@pytest.mark.parametrize(("tokens", "grad"), [(FEW + 1, True), (FEW, False)], ids=["many", "without gradients"])
def test_other_attention_is_torch_s(compiling, monkeypatch, tokens, grad):
    monkeypatch.setattr(attention, "_few", None)
    with torch.set_grad_enabled(grad):
        TokenAttention(4, 1)(torch.zeros(1, tokens, 4))


def test_convolutions_of_images_alone_see_their_channels_last(monkeypatch):
    network = nn.ModuleList([nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Conv3d(4, 6, 3)])
    channels_last([network])
    for dims, conv in enumerate(network, 1):
        x = normal(2, 4, *[5] * dims).float()
        expected = conv(x)
        assert expected.is_contiguous()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = conv(x)
        monkeypatch.undo()
        assert found.is_contiguous() is (dims != 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert conv.weight.is_contiguous()
