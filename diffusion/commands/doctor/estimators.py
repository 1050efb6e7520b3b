"""Every likelihood estimator against models whose likelihood is known, each held to the error that it states itself.

Data N(m, c^2) of eight independent dimensions. All of an estimator's terms are then quadratic in x, so that their means
over a bin of levels are known too: E (x + u - m)^2 = (x - m)^2 + w^2 / 12. With an exact denoiser the bound is

    KL_low(x) - KL_high(x) - KL(q(x_1 | x) || prior) - entropy of the decoder
    KL_s = KL(N(x, 1/s) || N(m, c^2 + 1/s))

in continuous time (`variational_bound`), and in discrete time has E||x - x_hat||^2 at each step for its terms, with
x - x_hat = (1 - g alpha)(x - m) - g sigma eps and g = alpha c^2 / (alpha^2 c^2 + sigma^2).

Latent-variable models: x = a z + b + s eps in each dimension, whose p(x), posterior and bound are normal laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...baselines.annealed import annealed_importance_sampling, bidirectional
from ...baselines.entropy import knn_entropy, normal_entropy
from ...baselines.importance_weighted import evidence_lower_bound, importance_weighted
from ...baselines.latent_variable import LatentVariableModel
from ...denoisers.exact import Gaussian
from ...likelihood import Dequantizer, Estimate, measure, variational_bound
from ...numerics import random
from ...schedules import VP
from ...schedules.forward_process import posterior
from .check import Check, attempt, within

GROUP = "estimators"
_MEAN, _STD, _DIMS, _LEVELS, _DATA = 0.1, 0.4, 8, 17, 128
_DRAWS, _STEPS = 512, 1000  # noise levels of the bound; steps of the discrete one
_SIGMAS = 4.0  # standard errors that a figure may be off
_ROUNDING = 1e-5  # bits/dim
_POINTS, _NEIGHBOUR = 2000, 3
_F64 = torch.float64


def check_estimators(device: torch.device) -> list[Check]:
    """The checks of all estimators."""
    model = Gaussian(torch.full((_DIMS,), _MEAN, dtype=_F64), _STD, VP()).to(device)
    x = model.draw(_DATA).cpu()
    levels = Dequantizer(_LEVELS).quantize(x)
    center, width = Dequantizer(_LEVELS).center(levels, _F64), Dequantizer(_LEVELS).width
    of_bins = (_DIMS * math.log(width), width**2 / 12.0)
    times = variational_bound.discrete_times(model.schedule, _STEPS)

    def density(method: str, **options: Any) -> Callable[[], Estimate]:
        return lambda: measure.log_density(model, x.to(device), method, error_budget=True, **options)

    def of_levels(method: str, **options: Any) -> Callable[[], Estimate]:
        return lambda: measure.log_likelihood(model, levels.to(device), method, _LEVELS, error_budget=True, **options)

    found: list[Check] = []
    for name, body, truth in (
        ("ode, exact trace", density("ode"), _log_density(x)),
        ("ode, Hutchinson", density("ode", trace="hutchinson", probes=4), _log_density(x)),
        ("elbo", density("elbo", evaluations=_DRAWS), _bound(x)),
        ("immse", density("immse"), _log_density(x)),
        ("ode, levels", of_levels("ode", draws=4), of_bins[0] + _log_density(center, of_bins[1])),
        ("elbo, levels", of_levels("elbo", evaluations=_DRAWS, dequantize=True),
         of_bins[0] + _bound(center, of_bins[1])),
        ("elbo-discrete, levels", of_levels("elbo-discrete", steps=_STEPS, dequantize=True),
         of_bins[0] + _bound(center, of_bins[1], times)),
        ("immse, levels", of_levels("immse"), of_bins[0] + _log_density(center, of_bins[1])),
    ):  # fmt: skip
        found += attempt(GROUP, name, lambda name=name, body=body, truth=truth: [_against(name, body(), truth)])
    found += attempt(GROUP, "latent variables", lambda: _latent(device))
    return [*found, *attempt(GROUP, "knn entropy", lambda: [_entropy(device)])]


def _against(name: str, estimate: Estimate, truth: Tensor) -> Check:
    """The mean over the data, within four of its own standard errors and its own systematic error."""
    scale = estimate.nats_per_bit_per_dim
    allowed = _SIGMAS * estimate.random_error + estimate.systematic_error + _ROUNDING
    mean = -float(truth.mean()) / scale
    return within(GROUP, name, f"bits/dim, mean of {len(estimate)} data", estimate.mean().mean, mean, allowed)


def _log_density(x: Tensor, spread: float = 0.0) -> Tensor:
    """E_u log p(x + u), where each dimension of u has the variance `spread`."""
    squares = (x - _MEAN).square() + spread
    return -0.5 * (squares / _STD**2 + math.log(2.0 * math.pi * _STD**2)).sum(1)


def _bound(x: Tensor, spread: float = 0.0, times: Tensor | None = None) -> Tensor:
    """E_u of the evidence lower bound of the density at x + u, in continuous time or at the given times."""
    schedule = VP()
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=_F64)
    squares = (x - _MEAN).square() + spread
    (alpha, sigma), prior = schedule(ends[0]), schedule.prior_std**2
    ratio = sigma**2 / prior
    to_prior = 0.5 * (ratio - 1.0 - ratio.log() + alpha**2 * (x.square() + spread) / prior)
    low, high = schedule.log_snr(ends).exp()
    entropy = 0.5 * (1.0 + math.log(2.0 * math.pi) - high.log())
    diffusion = _divergence(squares, low) - _divergence(squares, high) if times is None else -_steps(squares, times)
    return (diffusion - to_prior - entropy).sum(1)


def _divergence(squares: Tensor, s: Tensor) -> Tensor:
    """KL(N(x, 1/s) || N(m, c^2 + 1/s)) in each dimension, from (x - m)^2."""
    variance = _STD**2 + 1.0 / s
    ratio = 1.0 / (s * variance)
    return 0.5 * (ratio - 1.0 - ratio.log() + squares / variance)


def _steps(squares: Tensor, times: Tensor) -> Tensor:
    """The sum over the steps of KL(q(x_s | x_t, x) || p(x_s | x_t)) in each dimension, lower variance."""
    times = times.sort().values
    s, t = times[:-1], times[1:]
    alpha, sigma = VP()(t)
    q = posterior(VP(), t, s)
    g = alpha * _STD**2 / (alpha**2 * _STD**2 + sigma**2)
    error = (1.0 - g * alpha).square() * squares[..., None] + (g * sigma).square()
    return (0.5 * q.from_x.square() / q.variance * error).sum(-1)


class _LinearGaussian(LatentVariableModel):
    """x = a z + b + s eps in each dimension; the proposal is the posterior, moved and widened."""

    slope: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.levels = 3, None
        self.register_buffer("slope", torch.tensor([0.5, 1.0, 2.0], dtype=_F64))
        self.intercept, self.noise, self.shift, self.stretch = 0.3, 0.5, 0.3, 1.3

    def proposal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        std = (1.0 + self.slope.square() / self.noise**2).rsqrt().expand(len(x), -1)
        mean = std.square() * (x - self.intercept) * self.slope / self.noise**2
        return mean + self.shift * std, self.stretch * std

    def log_prob_given(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.slope * z + self.intercept, self.noise).log_prob(x).sum(1)

    def draw_given(self, z: Tensor, seed: int, indices: Tensor) -> Tensor:
        eps = random.normal(seed, indices, 0, (self.latent_dim,), random.STREAM_TOY, self.dtype, z.device)
        return self.slope * z + self.intercept + self.noise * eps

    @property
    def protocol(self) -> dict[str, object]:
        return {"model": "linear Gaussian"}

    def log_prob(self, x: Tensor) -> Tensor:
        std = (self.slope.square() + self.noise**2).sqrt()
        return torch.distributions.Normal(self.intercept, std).log_prob(x).sum(1).cpu()

    def gap(self) -> float:
        """KL(q(z | x) || p(z | x)), the same for all x."""
        square = self.stretch**2
        return 0.5 * self.latent_dim * (square + self.shift**2 - 1.0 - math.log(square))


def _latent(device: torch.device) -> list[Check]:
    model = _LinearGaussian().to(device)
    z = random.normal(1, torch.arange(_DATA), 0, (3,), random.STREAM_TOY, _F64, device)
    x = model.draw_given(z, 0, torch.arange(_DATA))
    truth = model.log_prob(x)
    made = [
        _against("elbo, latent variables", evidence_lower_bound(model, x, 200), truth - model.gap()),
        _against("iwae", importance_weighted(model, x, 2000), truth),
        _against("ais", annealed_importance_sampling(model, x, steps=60, chains=16, leapfrog=5), truth),
    ]
    sides = bidirectional(model, _DATA, steps=60, chains=16, leapfrog=5)
    mean = float(model.log_prob(sides.x).mean())
    low, high = float(sides.lower.mean()), float(sides.upper.mean())
    errors = [float(error.square().sum().sqrt()) / _DATA for error in (sides.lower_error, sides.upper_error)]
    passed = low - _SIGMAS * errors[0] <= mean <= high + _SIGMAS * errors[1]
    expected = f"around {mean:.4f} ± {_SIGMAS * max(errors):.1g}"
    return [*made, Check(GROUP, "ais, from both sides", "means, nats", f"{low:.4f} to {high:.4f}", expected, passed)]


def _entropy(device: torch.device) -> Check:
    z = random.normal(0, torch.arange(_POINTS), 0, (2,), random.STREAM_TOY, _F64, device)
    # Var log p = d / 2 = 1 nat^2, and that of a ball's log content is psi'(k)
    variance = 1.0 + float(torch.special.polygamma(1, torch.tensor(float(_NEIGHBOUR))))
    allowed = _SIGMAS * math.sqrt(variance / _POINTS)
    found = float(knn_entropy(z, _NEIGHBOUR))
    return within(GROUP, "knn entropy", f"nats, {_POINTS} points of N(0, I)", found, normal_entropy(2), allowed)
