"""Transformers of today: rotary positions, norms, SwiGLU, embeddings of large patches, against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffusion import denoisers, objectives, schedules
from diffusion.config import NetworkConfig
from diffusion.errors import UserError
from diffusion.networks import DiT
from diffusion.networks.attention import BASE, TokenAttention, rotary_angles, rotated
from diffusion.networks.dit import DiTBlock, modulate

F64 = torch.float64


def grid(*counts, shift=0.0):
    return [torch.arange(n, dtype=F64) + shift * (i + 1) for i, n in enumerate(counts)]


@pytest.mark.quick
@pytest.mark.parametrize("counts", [(7,), (3, 4), (2, 3, 2)])
def test_logits_depend_on_differences_of_positions_alone(counts):
    """Of all positions shifted alike no logit changes; of one side stretched, they do."""
    n, width = math.prod(counts), 14
    q, k = torch.randn(2, 1, 2, n, width, dtype=F64)

    def logits(places):
        angle = rotary_angles(places, width)
        return rotated(q, angle) @ rotated(k, angle).mT

    here = logits(grid(*counts))
    torch.testing.assert_close(logits(grid(*counts, shift=12.3)), here, rtol=0, atol=1e-11)
    first, *others = grid(*counts)
    assert float((logits([2 * first, *others]) - here).abs().max()) > 0.05
    # tokens at one place see each other as without positions
    diagonal = (q * k).sum(-1)
    torch.testing.assert_close(here.diagonal(dim1=-2, dim2=-1), diagonal, rtol=0, atol=1e-11)


@pytest.mark.quick
def test_each_pair_is_a_rotation_by_its_frequency_and_side():
    """As complex numbers: feature i and i + pairs are one, times exp(i w p) with p its row or column."""
    places, width = grid(3, 5), 9
    angle = rotary_angles(places, width)
    assert angle.shape == (15, 4)  # two pairs a side; the ninth feature is left
    x = torch.randn(1, 1, 15, width, dtype=F64)
    found = rotated(x, angle)
    for token in range(15):
        row, column = divmod(token, 5)
        for pair in range(4):
            w = BASE ** -((pair % 2) / 2)
            turn = torch.polar(torch.tensor(1.0, dtype=F64), torch.tensor(w * (row, column)[pair // 2], dtype=F64))
            value = torch.complex(x[0, 0, token, pair], x[0, 0, token, pair + 4]) * turn
            assert found[0, 0, token, pair] == pytest.approx(float(value.real), abs=1e-12)
            assert found[0, 0, token, pair + 4] == pytest.approx(float(value.imag), abs=1e-12)
    assert torch.equal(found[..., 8], x[..., 8])


@pytest.mark.quick
def test_with_rotary_positions_a_token_does_not_know_its_place(waken):
    """Equal patches have equal outputs, as no position is in a token; directions are seen in attention."""
    network = waken(DiT(1, 1, width=16, depth=1, heads=2, image_size=4, positions="rotary")).double()
    x = torch.ones(1, 1, 4, 4, dtype=F64)
    y = network(x, torch.zeros(1, dtype=F64))
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=0, atol=1e-10)  # equal tokens, equal values
    absolute = waken(DiT(1, 1, width=16, depth=1, heads=2, image_size=4)).double()
    y = absolute(x, torch.zeros(1, dtype=F64)).detach()
    assert float((y - y[..., :1, :1]).abs().max()) > 1e-3
    x = torch.randn(1, 1, 4, 4, dtype=F64)
    turned = network(x.flip(-1), torch.zeros(1, dtype=F64)).flip(-1)
    assert float((turned - network(x, torch.zeros(1, dtype=F64))).detach().abs().max()) > 1e-6  # directions are seen


@pytest.mark.quick
def test_norms_of_queries_and_keys_bound_the_logits(waken):
    """Their root mean square is one, whatever the weights: no logit is above sqrt(d) times the learned factors."""
    attention = TokenAttention(8, 2, qk_norm=True).double()
    x = torch.randn(3, 5, 8, dtype=F64)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:16] *= 1e3  # queries and keys
    torch.testing.assert_close(attention(x), before, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        attention.norm_q.weight.normal_()
        attention.norm_k.weight.normal_()
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attention.norm_q.weight
    k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attention.norm_k.weight
    mixed = torch.softmax(q @ k.mT / 2.0, dim=-1) @ v
    torch.testing.assert_close(attention(x), attention.out(mixed.transpose(1, 2).flatten(2)), rtol=1e-9, atol=1e-9)


@pytest.mark.quick
def test_rms_norm_and_swiglu_are_their_formulas():
    x, shift, scale = torch.randn(2, 3, 6, dtype=F64), *torch.randn(2, 2, 1, 6, dtype=F64)
    root = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(modulate(x, shift, scale, norm="rms"), x / root * (1 + scale) + shift)
    block = DiTBlock(6, 2, 24, norm="rms", activation="swiglu").double()
    with torch.no_grad():
        block.modulation.weight.normal_()
    embedding = torch.randn(2, 6, dtype=F64)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation(embedding)[:, None].chunk(6, dim=-1)
    y = x + gate_1 * block.attention(modulate(x, shift_1, scale_1, norm="rms"))
    a, b = block.dense_1(modulate(y, shift_2, scale_2, norm="rms")).chunk(2, dim=-1)
    assert a.shape[-1] == 16  # 2/3 of 24: three maps of 6 x 16 have the weights of two of 6 x 24
    torch.testing.assert_close(block(x, embedding), y + gate_2 * block.dense_2(F.silu(a) * b))


@pytest.mark.quick
def test_without_the_options_a_network_is_drawn_as_before():
    """The defaults are the published DiT: the same names, in the same order, and no weight more."""
    names = list(DiT(1, 2, 8, 1, 2).state_dict())
    assert names[-4:] == ["modulation_out.weight", "modulation_out.bias", "dense_out.weight", "dense_out.bias"]
    assert not any(word in name for name in names for word in ("norm", "bottleneck"))
    options = NetworkConfig(name="dit")
    assert (options.positions, options.qk_norm, options.norm, options.activation) == (
        "absolute",
        False,
        "layer",
        "gelu",
    )
    assert options.bottleneck is None


@pytest.mark.quick
def test_large_patches_can_predict_x_and_not_noise():
    """Data on a line in a patch of 64 numbers, tokens of 8: outputs of rank 8 hold x, and at most 8/64 of the noise."""
    torch.manual_seed(0)
    direction = torch.randn(64)
    x = torch.randn(256, 1) * direction / direction.norm() * 8.0
    x = x.reshape(256, 1, 8, 8)
    errors = {}
    for prediction in ("x", "eps"):
        torch.manual_seed(1)
        network = DiT(1, 8, width=8, depth=1, heads=1, image_size=8, bottleneck=4, norm="rms", activation="swiglu")
        path = schedules.Cosine()
        model = denoisers.NetworkDenoiser(network, path, prediction, (1, 8, 8))
        times = objectives.time_distribution("log-normal", -0.2, 0.3)
        loss = objectives.Objective(objectives.weighting("elbo", path), times)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(2)
        for _ in range(120):
            optimizer.zero_grad()
            loss(model, x, generator=generator).mean().backward()
            optimizer.step()
        with torch.no_grad():
            errors[prediction] = float(loss(model, x, generator=generator).eps_error.mean())
    # noise has 64 directions, of which an output of rank 8 follows 8 at most: an error of 56/64 or more
    assert errors["eps"] > 0.85
    assert errors["x"] < 0.5 * errors["eps"]


def test_wrong_words_and_heads_are_refused():
    with pytest.raises(UserError, match="heads of 2 features are too narrow for rotary positions along 2 sides"):
        DiT(1, width=8, heads=4, depth=1, positions="rotary")
    with pytest.raises(UserError, match=r"positions: 'rotery' is not known.*Did you mean 'rotary'"):
        DiT(1, width=8, heads=2, depth=1, positions="rotery")
    with pytest.raises(UserError, match="bottleneck"):
        DiT(1, width=8, heads=2, depth=1, bottleneck=0)
    with pytest.raises(UserError, match=r"network\.qk_norm: found true; 'unet' does not take it"):
        NetworkConfig(qk_norm=True)
