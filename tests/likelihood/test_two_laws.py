"""A nonlinear denoiser that is the posterior mean of nothing: each estimator is held to its own law, by quadrature.

In one dimension. The flow's density is the prior's over the derivative of the map from noise to data, solved from a
grid of starts. The reverse SDE's is a chain of Gaussian steps, each applied to a density on a grid. Its bound is an
integral over the noise and over log-SNR. None of them uses the package's estimators, and the three differ by far more
than any error here.
"""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from laws import f64
from scipy.interpolate import CubicSpline

import diffusion
from diffusion.denoisers import Denoiser
from diffusion.denoisers.exact import GaussianMixture
from diffusion.schedules import VP
from diffusion.schedules.schedule import log_snr_ends

PATH = VP(log_snr_max=7.0)  # ends in noise that a grid resolves
MEANS, STDS, WEIGHTS = f64([[-0.6], [0.5]]), f64([0.25, 0.15]), f64([0.4, 0.6])
LAW = GaussianMixture(MEANS, STDS, PATH, WEIGHTS)
LOW, HIGH = log_snr_ends(PATH)
X = f64([-0.9, -0.5, 0.0, 0.3, 0.55])[:, None]


@cache
def bent(bend):
    return Bent(bend)


class Bent(Denoiser):
    """The mixture's posterior mean, and a bend at middle noise: x_hat + bend s / (1 + s)^2 tanh(2 y), s the SNR."""

    def __init__(self, bend):
        super().__init__()
        self.bend, self.schedule, self.shape = bend, PATH, (1,)

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (value.reshape(-1, 1).to(x_t) for value in self.schedule(t))
        s = (alpha / sigma) ** 2
        return LAW.posterior_mean(x_t, alpha[:, 0], sigma[:, 0]) + self.bend * s / (1 + s) ** 2 * torch.tanh(2 * x_t)


def point(log_snr):
    t = PATH.inverse_log_snr(f64(log_snr))
    alpha, sigma = PATH(t)
    return t, float(alpha), float(sigma)


def eps_hat(model, y, log_snr):
    """E[eps] at y = x_t / alpha, numpy to numpy."""
    t, alpha, sigma = point(log_snr)
    x_hat = model(f64(alpha * y)[:, None], t)[:, 0].numpy()
    return (y - x_hat) * alpha / sigma


def normal(x, std):
    return np.exp(-0.5 * (x / std) ** 2) / (math.sqrt(2 * math.pi) * std)


def prior_std():
    _, alpha, _ = point(LOW)
    return PATH.prior_std / alpha


@cache
def flow_log_density(model):
    """y follows dy / dn = eps_hat with n = sigma / alpha: fourth-order steps from the prior on a grid of starts."""
    start = prior_std() * np.linspace(-6, 6, 4001)
    y = start
    for low, high in pairwise(np.linspace(LOW, HIGH, 201)):

        def rate(at, y):  # dy / dlambda, n = exp(-lambda / 2)
            return -0.5 * math.exp(-0.5 * at) * eps_hat(model, y, at)

        h, middle = high - low, 0.5 * (low + high)
        a = rate(low, y)
        b = rate(middle, y + 0.5 * h * a)
        c = rate(middle, y + 0.5 * h * b)
        d = rate(high, y + h * c)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    back, x = CubicSpline(y, start), X[:, 0].numpy()
    return np.log(normal(back(x), prior_std()) * back(x, 1))


def sde_log_density(model):
    """The limit of many steps: the chain is of first order in their number."""
    return 2.0 * chain_log_density(model, 400) - chain_log_density(model, 200)


def chain_log_density(model, steps, points=501):
    """The law of y after Euler steps of the reverse SDE, dy = -dv score + dw of variance -dv, v = (sigma / alpha)^2.

    Exact Gaussian steps, q(y_s | y_t, x_hat), as the bound's in the limit; each density on a grid of its own, whose
    points are at most 1.2 deviations of the narrowest step apart: such a sum of a Gaussian is off by 1e-6.
    """
    grid = prior_std() * np.linspace(-6, 6, points)
    density = normal(grid, prior_std())
    for low, high in pairwise(np.linspace(LOW, HIGH, steps + 1)):
        v_t, v_s = math.exp(-low), math.exp(-high)
        x_hat = grid - math.sqrt(v_t) * eps_hat(model, grid, low)
        mean, std = grid * v_s / v_t + x_hat * (1 - v_s / v_t), math.sqrt(v_s * (1 - v_s / v_t))
        reach = 1.6 + 6 * math.sqrt(v_s)
        after = np.linspace(-reach, reach, points)
        weight = density * np.gradient(grid)
        density = (normal(after[:, None] - mean, std) * weight).sum(1)
        grid = after
    blurred = (normal(X.numpy() - grid, math.exp(-0.5 * HIGH)) * density * np.gradient(grid)).sum(1)
    return np.log(blurred)


@cache
def bound(model, levels=401, nodes=48):
    """Its three terms, the expectation over the noise by Gauss and Hermite's rule."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    at, x = np.linspace(LOW, HIGH, levels), X[:, 0].numpy()
    errors = []
    for log_snr in at:
        y = x[:, None] + math.exp(-0.5 * log_snr) * z
        found = eps_hat(model, y.ravel(), log_snr).reshape(y.shape)
        errors.append(((z - found) ** 2 * weights).sum(1))
    diffusion_term = -0.5 * np.trapezoid(np.array(errors), at, axis=0)
    prior, noise = prior_std() ** 2, math.exp(-LOW)
    to_prior = 0.5 * ((x**2 + noise) / prior - 1 - math.log(noise / prior))
    return diffusion_term - to_prior - 0.5 * (math.log(2 * math.pi) - HIGH + 1)


@pytest.mark.parametrize(
    "bend", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(-0.6, marks=pytest.mark.slow)]
)
def test_the_flow_and_the_sde_of_a_bent_denoiser(bend):
    model = bent(bend)
    flow, sde, elbo = flow_log_density(model), sde_log_density(model), bound(model)
    ode = diffusion.log_density(model, X, tolerance=1e-7).log_prob.numpy()
    np.testing.assert_allclose(ode, flow, atol=2e-3)
    many = X.repeat_interleave(128, 0)  # of the bound, the mean over draws of the noise
    found = diffusion.log_density(model, many, method="elbo", evaluations=256)
    means = found.log_prob.reshape(len(X), -1).mean(1).numpy()
    errors = found.log_prob.reshape(len(X), -1).std(1).numpy() / math.sqrt(128)
    assert errors.max() < 0.03
    np.testing.assert_array_less(np.abs(means - elbo), 4 * errors + 2e-3)
    assert (elbo < sde + 2e-3).all()  # a bound on its own law, point by point
    if bend:
        assert np.abs(flow - sde).max() > 0.1  # two models
        return
    # what the path's end leaves in the data is part of the laws, in the bound's once more, by its decoder
    for truth, times in ((flow, 1), (sde, 2)):
        exact = GaussianMixture(MEANS, (STDS**2 + times * math.exp(-HIGH)).sqrt(), PATH, WEIGHTS)
        np.testing.assert_allclose(truth, exact.log_prob(X).numpy(), atol=3e-3)


def test_a_bound_of_the_sde_can_lie_above_the_flow():
    """So it bounds no flow: at some x the flow's exact log-density is the lower of the two."""
    model = bent(0.5)
    assert (bound(model) > flow_log_density(model) + 0.05).any()
