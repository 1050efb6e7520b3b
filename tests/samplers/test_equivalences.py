"""Equalities that the docstrings claim, on a mixture, where nothing is affine; and the same process on two paths."""

from itertools import pairwise

import pytest
import torch
from laws import (
    FIXED_STEP,
    FOUR_SCHEDULES,
    NOISELESS_SDE,
    SCHEDULES,
    STOCHASTIC,
    by_turns,
    mixture,
    name,
    seeded,
    times,
)

from diffusion.denoisers import Retimed
from diffusion.samplers import (
    DDIM,
    DEIS,
    ODE,
    Adams,
    Ancestral,
    DPMSolverPP3M,
    Euler,
    EulerMaruyama,
    ExponentialSDE,
    UniPC,
)
from diffusion.samplers.sde import sde
from diffusion.schedules import VE, VP, Rectified

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def _noise(step):
    return seeded(5, 2, seed=100 + step)


def _run(sampler, schedule, steps=12):
    grid = times(schedule, steps + 1, -6.0, 6.0)
    alpha, sigma = schedule(grid[0])
    x_1 = torch.hypot(alpha, sigma) * seeded(5, 2)
    return x_1, grid, sampler.sample(mixture(schedule), x_1, grid, _noise)


@every_schedule
def test_ddim_0_is_euler_in_its_own_variables(schedule):
    """dx~ = eps dsigma~ with x~ = x / alpha, sigma~ = sigma / alpha (Song, Meng, Ermon 2021, eq. 14)."""
    x, grid, result = _run(DDIM(0.0), schedule)
    denoiser = mixture(schedule)
    for t, s in pairwise(grid):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * denoiser.eps(x, t))
    torch.testing.assert_close(result, x, **CLOSE)


@every_schedule
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_the_papers_eq_12_and_16(schedule, eta):
    """With bar alpha = alpha^2 / (alpha^2 + sigma^2) on the path scaled to preserve variance."""
    x, grid, result = _run(DDIM(eta), schedule)
    denoiser = mixture(schedule)
    for step, (t, s) in enumerate(pairwise(grid)):
        r_t, r_s = torch.hypot(*schedule(t)), torch.hypot(*schedule(s))
        bar_t, bar_s = (schedule(t)[0] / r_t) ** 2, (schedule(s)[0] / r_s) ** 2
        std = eta * torch.sqrt((1 - bar_s) / (1 - bar_t)) * torch.sqrt(1 - bar_t / bar_s)
        x_hat, eps = denoiser(x, t), denoiser.eps(x, t)
        x = r_s * (bar_s.sqrt() * x_hat + torch.sqrt(1 - bar_s - std**2) * eps + std * _noise(step))
    torch.testing.assert_close(result, x, **CLOSE)


@every_schedule
def test_ends_of_the_noise_dial(schedule):
    _, _, ddim = _run(DDIM(0.0), schedule)
    _, _, ddim_1 = _run(DDIM(1.0), schedule)
    _, _, lower = _run(Ancestral("lower"), schedule)
    torch.testing.assert_close(_run(ExponentialSDE(0.0, order=1), schedule)[2], ddim, **CLOSE)
    torch.testing.assert_close(_run(ExponentialSDE(1.0, order=1), schedule)[2], lower, **CLOSE)
    torch.testing.assert_close(ddim_1, lower, **CLOSE)
    assert not torch.allclose(ddim, lower, atol=0.1)


@every_schedule
def test_euler_maruyama_is_the_sde_in_the_schedules_time(schedule):
    eta = 0.8
    x, grid, result = _run(EulerMaruyama(eta), schedule, steps=40)
    denoiser = mixture(schedule)
    for step, (t, s) in enumerate(pairwise(grid)):
        g = sde.diffusion_squared(schedule, t).sqrt()
        x = x + (s - t) * sde.reverse_drift(denoiser, x, t, eta) + eta * g * torch.sqrt(t - s) * _noise(step)
    torch.testing.assert_close(result, x, rtol=1e-7, atol=1e-7)


def test_ddim_on_the_straight_path_is_euler_on_the_velocity():
    """And so is Euler-Maruyama with eta 0, there: x_s = x_t + (s - t) velocity."""
    schedule = Rectified()
    x, grid, result = _run(DDIM(0.0), schedule)
    denoiser = mixture(schedule)
    for t, s in pairwise(grid):
        x = x + (s - t) * denoiser.velocity(x, t)
    torch.testing.assert_close(result, x, **CLOSE)
    torch.testing.assert_close(_run(EulerMaruyama(0.0), schedule)[2], x, **CLOSE)


@every_schedule
def test_ode_euler_is_euler_in_the_angle(schedule):
    """z = x_t / r, dz / dphi = v / r: not DDIM, whose variables are others."""
    x, grid, result = _run(ODE("euler"), schedule)
    denoiser = mixture(schedule)
    for t, s in pairwise(grid):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        r_t, r_s = torch.hypot(alpha_t, sigma_t), torch.hypot(alpha_s, sigma_s)
        step = torch.atan2(sigma_s, alpha_s) - torch.atan2(sigma_t, alpha_t)
        x = r_s * (x / r_t + step * denoiser.v(x, t) / r_t)
    torch.testing.assert_close(result, x, **CLOSE)


OF_LOG_SNR = [s for s in (*FIXED_STEP, *NOISELESS_SDE, *STOCHASTIC) if not isinstance(s, EulerMaruyama)]
TWO_PATHS = [(own, schedule) for own in (VP(), VE()) for schedule in FOUR_SCHEDULES]


@pytest.mark.parametrize(("sampler", "paths"), by_turns([*OF_LOG_SNR, ODE("dopri5")], TWO_PATHS, 4), ids=name)
def test_the_same_process_on_another_path_gives_the_same_samples(sampler, paths):
    """All but Euler-Maruyama, whose variable is the schedule's own time, depend on log-SNR only."""
    own, schedule = paths
    log_snr = torch.linspace(-6.0, 6.0, 9, dtype=torch.float64)
    samples = []
    for denoiser in (mixture(own), Retimed(mixture(own), schedule)):
        grid = denoiser.schedule.inverse_log_snr(log_snr)
        alpha, sigma = denoiser.schedule(grid)
        x_1 = torch.hypot(alpha[0], sigma[0]) * seeded(5, 2)
        samples.append(sampler.sample(denoiser, x_1, grid, _noise) / torch.hypot(alpha[-1], sigma[-1]))
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-6, atol=1e-7)


@every_schedule
@pytest.mark.parametrize(
    "sampler",
    [
        Euler(),
        DEIS(1),
        UniPC(1, corrector=False),
        Adams(1, corrector=False, space="data"),
        Adams(1, corrector=False, space="noise"),
    ],
    ids=name,
)
def test_methods_of_order_1_are_ddim(sampler, schedule):
    """DPM-Solver-1, UniP-1 and Euler in sigma / alpha, whatever the variables."""
    torch.testing.assert_close(_run(sampler, schedule)[2], _run(DDIM(0.0), schedule)[2], rtol=1e-10, atol=1e-10)


@every_schedule
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Adams(1, corrector=False, data_std=1.0), ODE("euler")),
        (DPMSolverPP3M(), Adams(3, corrector=False, space="data")),
        (UniPC(2), Adams(2, space="data")),
        (UniPC(3, corrector=False), DPMSolverPP3M()),
        (DEIS(3), Adams(3, corrector=False, space="noise")),
    ],
    ids=name,
)
def test_names_of_one_method(one, other, schedule):
    torch.testing.assert_close(_run(one, schedule)[2], _run(other, schedule)[2], **CLOSE)
