"""The laws that every object of a kind is held to, and the exact answers that they need.

Data N(m, c^2) make everything affine: the probability-flow solution, every linear solver, and the law of the state of
a stochastic one (`diffusion.samplers.affine_law`).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.denoisers import exact
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ode.dpm_solver import DPMSolver2, DPMSolver3
from diffusion.samplers.ode.edm import Euler, Heun
from diffusion.samplers.ode.linear_multistep import ABM, DEIS, Adams, DPMSolverPP2M, DPMSolverPP3M, UniPC
from diffusion.samplers.ode.probability_flow import FIXED, ODE
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.sde.dpm_solver_sde import DPMSolverSDE
from diffusion.samplers.sde.reverse_sde import EulerMaruyama, ExponentialSDE
from diffusion.samplers.sde.sa_solver import SASolver
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Learned, Rectified, Schedule, SubVP

F64 = torch.float64


def learned(seed: int = 0) -> Learned:
    """A learned schedule with random weights, as if trained: its density varies by a factor of thirty."""
    schedule = Learned()
    with torch.no_grad():
        schedule.log_density.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(seed))
    return schedule.requires_grad_(False)


SCHEDULES: list[Schedule] = [
    VP(),
    VP(beta_min=1.0, beta_max=1.0),
    SubVP(),
    Cosine(),
    Rectified(),
    VE(),
    EDM(),
    DDPM(),
    DDPM(steps=50, betas="cosine"),
    learned(),
]
FIXED_SCHEDULES = [schedule for schedule in SCHEDULES if not schedule.is_learned]

# One of each sort (curved, straight, alpha = 1, kinks between levels), for the tests that cost seconds.
FOUR_SCHEDULES: list[Schedule] = [VP(), Rectified(), EDM(), DDPM(steps=50, betas="cosine")]

FIXED_STEP: list[Sampler] = [
    DDIM(),
    *(ODE(method) for method in FIXED),
    Euler(),
    Heun(),
    DPMSolver2(),
    DPMSolver3(),
    DPMSolverPP2M(),
    DPMSolverPP3M(),
    UniPC(1),
    UniPC(2),
    UniPC(3),
    DEIS(2),
    DEIS(3),
    Adams(),
    Adams(3),
    Adams(2, corrector=False, data_std=1.0),
    ABM(),
]
STOCHASTIC: list[Sampler] = [
    DDIM(0.5),
    DDIM(1.0),
    Ancestral("lower"),
    Ancestral("upper"),
    ExponentialSDE(0.5, order=1),
    ExponentialSDE(1.0, order=1),
    ExponentialSDE(1.7, order=1),
    ExponentialSDE(0.5),
    ExponentialSDE(1.0),
    ExponentialSDE(1.7),
    DPMSolverSDE(0.5),
    DPMSolverSDE(1.0),
    DPMSolverSDE(1.0, midpoint=0.3),
    SASolver(0.5, predictor=1, corrector=1),
    SASolver(1.0, predictor=2, corrector=0),
    SASolver(1.0, predictor=3, corrector=0),
    EulerMaruyama(0.5),
    EulerMaruyama(1.0),
]
NOISELESS_SDE: list[Sampler] = [
    ExponentialSDE(0.0, order=1),
    ExponentialSDE(0.0),
    DPMSolverSDE(0.0),
    SASolver(0.0, corrector=0),
    EulerMaruyama(0.0),
]

# The data of the fixtures. The mean is not 0 and the deviation not 1, so that no error cancels by symmetry.
MEAN, STD = 0.7, 0.4


def by_turns(ones, others, every: int = 2, first: int = 0) -> list:
    """The pairs of two lists for `parametrize`: all but each `every`-th are slow tests.

    In the quick ones each of the one list meets an `every`-th of the other; `first`, below `every`, says which.
    """
    return [
        pytest.param(one, other, marks=[] if (i + j) % every == first else [pytest.mark.slow])
        for i, one in enumerate(ones)
        for j, other in enumerate(others)
    ]


def name(thing: object) -> str:
    """The repr as a test id."""
    return repr(thing).replace(" ", "")


def f64(value) -> Tensor:
    return torch.as_tensor(value, dtype=F64)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def log_snrs(schedule: Schedule, n: int, low: float = -torch.inf, high: float = torch.inf) -> Tensor:
    """n log-SNRs from the path's start to its end (or `low` to `high`, where the path reaches that far)."""
    ends = schedule.log_snr(f64([schedule.t_max, schedule.t_min]))
    return torch.linspace(max(low, float(ends[0])), min(high, float(ends[1])), n, dtype=F64)


def times(schedule: Schedule, n: int, low: float = -torch.inf, high: float = torch.inf) -> Tensor:
    """n decreasing times, uniform in log-SNR: from noise to data, both ends within the path."""
    t = schedule.inverse_log_snr(log_snrs(schedule, n, low, high))
    return t.clamp(schedule.t_min, schedule.t_max)


def autograd_derivative(function, t: Tensor) -> Tensor:
    t = t.detach().requires_grad_()
    return torch.autograd.grad((function(t) + 0.0 * t).sum(), t)[0]  # 0 t: a constant has a derivative, too


def gaussian(schedule: Schedule) -> exact.Gaussian:
    return exact.Gaussian(f64([MEAN]), f64([STD]), schedule)


def gaussian_law(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t for the fixture's data."""
    alpha, sigma = schedule(t)
    return alpha * MEAN, (alpha * STD) ** 2 + sigma**2


def probability_flow(schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The probability-flow solution at s through x_t at t, for the fixture's data."""
    (m_t, v_t), (m_s, v_s) = gaussian_law(schedule, t), gaussian_law(schedule, s)
    return m_s + torch.sqrt(v_s / v_t) * (x_t - m_t)


def slope(steps: list[int], errors: list[float]) -> float:
    """Least-squares slope of -log(error) against log(steps): the measured order."""
    a, b = f64(steps).log(), f64(errors).log()
    a, b = a - a.mean(), b - b.mean()
    return float(-(a * b).sum() / (a * a).sum())


def mixture(schedule: Schedule) -> exact.GaussianMixture:
    """Three modes in the plane, of unequal weight and width."""
    means = f64([[1.0, 0.5], [-0.8, 0.9], [0.1, -1.1]])
    return exact.GaussianMixture(means, f64([0.3, 0.15, 0.5]), schedule, f64([0.5, 0.2, 0.3]))


def reverse_law(
    eta: float, schedule: Schedule, t: Tensor, s: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance at s of the exact reverse process of stochasticity eta, from any Gaussian law at t.

    The score of the fixture is affine: a deviation from the path's mean solves d delta / dt =
    [f + (1 + eta^2)/2 g^2 / V] delta, where V is the path's variance and g^2 / V = d log(V / alpha^2) / dt. So
    delta_s / delta_t = sqrt(V_s / V_t) (W_s / W_t)^(eta^2 / 2), W = V / alpha^2; and V itself is kept by every eta.
    """
    (m_t, v_t), (m_s, v_s) = gaussian_law(schedule, t), gaussian_law(schedule, s)
    ratio = (v_s / schedule(s)[0] ** 2) / (v_t / schedule(t)[0] ** 2)
    gain = torch.sqrt(v_s / v_t) * ratio ** (0.5 * eta**2)
    return m_s + gain * (mean - m_t), v_s + gain**2 * (variance - v_t)
