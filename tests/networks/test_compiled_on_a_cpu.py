"""What a network computes another way when it is compiled for a CPU is what it computes otherwise."""

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


@pytest.mark.parametrize("shape", [(3, 24, 40), (3, 24, 8, 6), (3, 24, 4, 3, 5)], ids=["signal", "image", "volume"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_group_norm_in_bf16(compiling, shape, last):
    norm = group_norm(shape[1])
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(shape[1], seed=1))
        norm.bias.copy_(normal(shape[1], seed=2))
    x = (3 + 2 * normal(*shape)).to(torch.bfloat16)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    exact, weight, bias = (of.detach().double().requires_grad_() for of in (x, norm.weight, norm.bias))
    expected = F.group_norm(exact, norm.num_groups, weight, bias, norm.eps)
    found = norm(x.requires_grad_())
    assert found.dtype == torch.bfloat16
    assert found.stride() == x.stride()
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)
    of_found = gradients(found, x, norm.weight, norm.bias)
    for one, other in zip(of_found, gradients(expected, exact, weight, bias), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.02 * float(other.abs().mean()))


def test_other_numbers_are_normalised_as_torch_does_it(compiling):
    x = normal(2, 8, 5, 5).float()
    norm = group_norm(8)
    torch.testing.assert_close(norm(x), nn.GroupNorm(2, 8)(x), rtol=0, atol=0)


@pytest.mark.parametrize("follow", [None, 20], ids=["constant", "entropy invariant"])
def test_attention_among_few_tokens(monkeypatch, follow):
    layer, tokens = TokenAttention(16, 2, follow).double(), normal(2, 49, 16).requires_grad_()
    expected = layer(tokens)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(attention.F, "scaled_dot_product_attention", None)  # not called
        found = layer(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # logits are in float32
    torch.testing.assert_close(gradients(found, tokens), gradients(expected, tokens), rtol=1e-5, atol=1e-6)


def test_attention_among_many_is_torch_s(compiling, monkeypatch):
    monkeypatch.setattr(attention, "_few", None)
    TokenAttention(4, 1)(torch.zeros(1, FEW + 1, 4))


def test_weights_of_images_alone_are_stored_with_channels_last():
    network = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Conv3d(4, 6, 3), nn.Linear(4, 6))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    channels_last([network])
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(network[k].weight.is_contiguous() for k in (0, 2, 3))
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
