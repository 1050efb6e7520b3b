"""Divergences of fields whose divergence is known and is not zero."""

import pytest
import torch

from diffusion.likelihood import flow_density as module
from diffusion.likelihood.flow_density import exact_divergence, hutchinson_divergence
from diffusion.numerics import random


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def coupled(x):
    """f_i = sin(x_i) s + x_i^3, s the row's sum: div f = sum_i cos(x_i) s + sin(x_i) + 3 x_i^2, J not symmetric."""
    s = x.flatten(1).sum(1).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.sin(x) * s + x**3


def coupled_divergence(x):
    flat = x.flatten(1)
    return (torch.cos(flat) * flat.sum(1, keepdim=True) + torch.sin(flat) + 3 * flat**2).sum(1)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("in_flight", [1, 100, 2**16])
def test_exact_divergence(shape, in_flight, monkeypatch):
    monkeypatch.setattr(module, "_IN_FLIGHT", in_flight)  # one row of the Jacobian at a time, some, all
    x = seeded(4, *shape)
    value, divergence = exact_divergence(coupled, x)
    torch.testing.assert_close(value, coupled(x))
    torch.testing.assert_close(divergence, coupled_divergence(x))
    assert not value.requires_grad
    assert not divergence.requires_grad


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_hutchinson_is_unbiased_and_forwards_once(shape):
    x, calls = seeded(2, *shape), []
    probes = random.rademacher(0, torch.arange(2), 0, (4000, *shape), random.STREAM_PROBE, torch.float64)

    def counted(x):
        calls.append(1)
        return coupled(x)

    value, draws = hutchinson_divergence(counted, x, probes)
    assert len(calls) == 1
    torch.testing.assert_close(value, coupled(x))
    gap = draws.mean(1) - coupled_divergence(x)
    assert bool((gap.abs() < 4 * draws.std(1) / 4000**0.5).all())
    assert bool((draws.std(1) > 0).all())


def test_variance_law_of_hutchinson():
    """Var v^T A v = 2 sum_{i != j} S_ij^2; nothing for a symmetric part that is diagonal."""
    matrix = seeded(6, 6)
    probes = random.rademacher(3, torch.arange(1), 0, (5000, 6), 0, torch.float64)
    _, draws = hutchinson_divergence(lambda x: x @ matrix.T, seeded(1, 6), probes)
    symmetric = 0.5 * (matrix + matrix.T)
    variance = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    assert float(draws.var()) == pytest.approx(float(variance), rel=0.1)

    rotation_and_scale = matrix - matrix.T + torch.diag(seeded(6))
    _, draws = hutchinson_divergence(lambda x: x @ rotation_and_scale.T, seeded(1, 6), probes[:, :50])
    torch.testing.assert_close(draws, rotation_and_scale.trace().expand_as(draws))


def test_constant_field_has_no_divergence():
    x = seeded(2, 3)
    _, divergence = exact_divergence(torch.ones_like, x)
    _, draws = hutchinson_divergence(torch.ones_like, x, torch.ones(2, 1, 3, dtype=torch.float64))
    assert float(divergence.abs().max()) == float(draws.abs().max()) == 0.0
