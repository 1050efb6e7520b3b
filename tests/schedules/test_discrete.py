"""DDPM's discrete schedule: at its levels, DDPM's own numbers."""

import math

import numpy as np
import pytest
import torch
from laws import F64, f64

from diffusion.schedules import DDPM, Table
from diffusion.schedules.discrete import without_signal
from diffusion.schedules.forward_process import posterior, variance_for_unit_data


def _linear_betas(steps=1000):
    return np.linspace(1e-4, 0.02, steps, dtype=np.float64)


def _cosine_betas(steps):
    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)])


CASES = [
    (DDPM(), _linear_betas()),
    (DDPM(steps=100), _linear_betas(100)),
    (DDPM(steps=1000, betas="cosine"), _cosine_betas(1000)),
    (DDPM(steps=37, betas="cosine"), _cosine_betas(37)),
]
every_case = pytest.mark.parametrize(("schedule", "betas"), CASES, ids=["linear", "linear-100", "cosine", "cosine-37"])


def _levels(schedule):
    return torch.arange(1, schedule.steps + 1, dtype=F64) / schedule.steps


@every_case
def test_every_level_is_ddpms(schedule, betas):
    alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    torch.testing.assert_close(schedule.alphas_cumprod(), alphas_cumprod, rtol=1e-12, atol=0)
    alpha, sigma = schedule(_levels(schedule))
    torch.testing.assert_close(alpha**2, alphas_cumprod, rtol=1e-10, atol=0)
    torch.testing.assert_close(sigma**2, 1 - alphas_cumprod, rtol=1e-10, atol=0)


@every_case
def test_every_level_is_ddpms_in_float32(schedule, betas):
    alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    alpha, sigma = schedule(_levels(schedule).float())
    torch.testing.assert_close(alpha.double(), alphas_cumprod.sqrt(), rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(sigma.double(), (1 - alphas_cumprod).sqrt(), rtol=2e-4, atol=0)


@every_case
def test_the_posterior_between_levels_is_ddpm_eq_7(schedule, betas):
    betas = torch.from_numpy(betas)
    bar = torch.cumprod(1 - betas, 0)
    bar_t, bar_s, beta = bar[1:], bar[:-1], betas[1:]
    t = _levels(schedule)
    q = posterior(schedule, t[1:], t[:-1])
    torch.testing.assert_close(q.variance, (1 - bar_s) / (1 - bar_t) * beta, rtol=1e-8, atol=0)
    torch.testing.assert_close(q.from_x, bar_s.sqrt() * beta / (1 - bar_t), rtol=1e-8, atol=0)
    torch.testing.assert_close(q.from_x_t, (1 - beta).sqrt() * (1 - bar_s) / (1 - bar_t), rtol=1e-8, atol=0)


@every_case
def test_the_upper_variance_is_beta(schedule, betas):
    t = _levels(schedule)
    torch.testing.assert_close(
        variance_for_unit_data(schedule, t[1:], t[:-1]), torch.from_numpy(betas)[1:], rtol=1e-8, atol=0
    )


def test_log_snr_is_linear_between_levels():
    schedule = DDPM(steps=10)
    left, right = schedule.log_snr(f64([0.3, 0.4]))
    torch.testing.assert_close(
        schedule.log_snr(f64([0.325, 0.35])), torch.stack((0.75 * left + 0.25 * right, (left + right) / 2))
    )


def test_betas_of_other_projects():
    """Roots that are linear (arXiv 2112.10752), and a sigmoid from -6 to 6, by their formulas."""
    for name, expected in (
        ("scaled-linear", np.linspace(0.001**0.5, 0.02**0.5, 50) ** 2),
        ("sigmoid", 0.001 + 0.019 / (1 + np.exp(-np.linspace(-6, 6, 50)))),
    ):
        found = DDPM(50, name, 0.001, 0.02).alphas_cumprod().numpy()
        np.testing.assert_allclose(found, np.cumprod(1 - expected), rtol=1e-12)


def test_a_path_without_signal_at_its_end():
    """arXiv 2305.08891, algorithm 1: the first level stays, the last has no signal, roots are moved linearly."""
    before = DDPM(50, beta_end=0.1)
    after = without_signal(before)
    roots = before.alphas_cumprod().sqrt()
    assert float(after[-1]) == 0.0
    torch.testing.assert_close(after[0], roots[0] ** 2, rtol=1e-12, atol=0)
    steps = after.sqrt().diff() / roots.diff()
    torch.testing.assert_close(steps, steps[:1].expand(49), rtol=1e-9, atol=0)
    path = Table.of_alphas_cumprod(after.tolist())
    t = torch.arange(1, 50, dtype=F64) / 50
    torch.testing.assert_close(path.log_snr(t), after[:-1].logit(), rtol=1e-9, atol=1e-9)
