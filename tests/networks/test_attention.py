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


def test_the_scale_that_follows_the_tokens_is_the_constant_one_at_their_number_in_training(waken):
    plain = waken(TokenAttention(8, 2)).double()
    following = TokenAttention(8, 2, train_tokens=16).double()
    following.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 8, dtype=torch.float64)
    torch.testing.assert_close(following(x), plain(x), rtol=1e-12, atol=1e-12)
    assert following.scale(64, 4) == pytest.approx(math.log(64) / math.log(16) / 2.0)
    assert following.scale(1, 4) is not None
    assert not torch.allclose(following(torch.cat((x, x), 1)), plain(torch.cat((x, x), 1)))


def test_the_entropy_of_attention_stays_about_the_same():
    """Random queries and keys: with a constant scale the entropy grows with the number of tokens."""
    generator = torch.Generator().manual_seed(0)

    def entropy(tokens, layer):
        q, k = (2.0 * torch.randn(400, tokens, 16, generator=generator, dtype=torch.float64) for _ in range(2))
        scale = layer.scale(tokens, 16) or 16**-0.5
        p = torch.softmax(scale * q[:, :1] @ k.transpose(1, 2), dim=-1)
        return float(torch.special.entr(p).sum(-1).mean())

    constant, following = TokenAttention(16, 1), TokenAttention(16, 1, train_tokens=64)
    change = {name: abs(entropy(1024, layer) - entropy(64, layer)) for name, layer in
              {"constant": constant, "following": following}.items()}  # fmt: skip
    assert change["following"] < 0.2 * change["constant"], change
