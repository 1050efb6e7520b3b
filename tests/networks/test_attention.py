import math

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks.attention import FeatureMapAttention, TokenAttention


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_tokens_against_the_explicit_formula(heads, waken):
    channels, d = 8, 8 // heads
    attention = waken(TokenAttention(channels, heads)).double()
    x = torch.randn(3, 5, channels, dtype=torch.float64)
    w_q, w_k, w_v = attention.qkv.weight.chunk(3)
    b_q, b_k, b_v = attention.qkv.bias.chunk(3)
    expected = []
    for head in range(heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = x @ w_q[rows].T + b_q[rows], x @ w_k[rows].T + b_k[rows], x @ w_v[rows].T + b_v[rows]
        expected.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(d), dim=-1) @ v)
    expected = torch.cat(expected, dim=-1) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-12)


def test_tokens_have_no_order(waken):
    attention = waken(TokenAttention(8, 2)).double()
    x, order = torch.randn(2, 6, 8, dtype=torch.float64), torch.randperm(6)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order], rtol=1e-10, atol=1e-12)


def test_each_of_q_k_v_is_drawn_with_its_own_fans():
    weight = TokenAttention(64, 1).qkv.weight
    bound = math.sqrt(6 / (64 + 64))
    for part in weight.chunk(3):
        assert part.abs().max() <= bound
        assert part.abs().max() > 0.99 * bound


def test_feature_map_is_the_identity_at_initialisation():
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(FeatureMapAttention(8, 1)(x), x)


def test_feature_map_is_tokens_of_its_pixels(waken):
    layer = waken(FeatureMapAttention(8, 2)).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    normed = layer.norm(x)
    tokens = torch.stack([normed[:, :, i, j] for i in range(3) for j in range(4)], dim=1)
    mixed = layer.attention(tokens)
    y = layer(x)
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(y[:, :, i, j], x[:, :, i, j] + mixed[:, 4 * i + j], rtol=1e-10, atol=1e-12)


def test_memory_format_changes_nothing(waken):
    layer = waken(FeatureMapAttention(8, 2))
    x = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x), rtol=1e-4, atol=1e-5)


def test_heads_must_divide():
    with pytest.raises(UserError, match="heads: 3 does not divide the 8 channels"):
        TokenAttention(8, 3)
