"""What a network may predict, and the conversions between predictions: pure functions of the path.

With x_t = alpha x + sigma eps, each of these determines all the others:

    x         the clean sample
    eps       the noise                           x_t = alpha x + sigma eps
    score     grad log p(x_t)                     score = -eps / sigma
    v         (Salimans and Ho 2022, 2202.00512)  v = alpha eps - sigma x
    velocity  d x_t / dt along the path           velocity = alpha' x + sigma' eps

Each pair `a_to_x` and `x_to_a` is exact algebra in both directions; every other conversion goes through x.
All coefficients broadcast against x_t (see `pad_dims_like`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import PREDICTIONS
from ..numerics.broadcasting import pad_dims_like
from ..schedules import Schedule

NAMES = tuple(name for name in PREDICTIONS if name != "edm")  # whose scaling of the input is `preconditioning`'s


class PathPoint:
    """The path at a time: alpha, sigma and their derivatives, to be multiplied by a batch.

    One time for the whole batch gives Python floats: torch multiplies by them faster than by 0-d tensors, and they need
    not be copied to a GPU.

    Args:
        schedule: The path.
        t: The time, () or (B,).
        x: What they multiply and, if they are tensors, take their dtype from (they are computed in the dtype of `t`).
    """

    def __init__(self, schedule: Schedule, t: Tensor, x: Tensor):
        self._schedule, self._t, self._x = schedule, t, x
        self.alpha, self.sigma = map(self._fit, schedule(t))
        self._found: tuple[Any, Any] | None = None

    def _fit(self, value: Tensor) -> Any:
        if value.ndim == 0 and value.device.type == "cpu" and not torch.compiler.is_compiling():
            return value.item()
        return pad_dims_like(value, self._x).to(self._x.dtype)

    # Needed only by velocities, and as expensive as all the rest. A `cached_property` has a lock, which no graph has.
    def _derivatives(self) -> tuple[Any, Any]:
        if self._found is None:
            d_alpha, d_sigma = self._schedule.derivatives(self._t)
            self._found = self._fit(d_alpha), self._fit(d_sigma)
        return self._found

    @property
    def d_alpha(self) -> Any:
        """alpha'."""
        return self._derivatives()[0]

    @property
    def d_sigma(self) -> Any:
        """sigma'."""
        return self._derivatives()[1]


def linear(p: Any, x: Tensor, q: Any, y: Tensor) -> Tensor:
    """p x + q y, in two full-size operations if p and q are floats."""
    return torch.add(p * x, y, alpha=q) if isinstance(q, float) else p * x + q * y


def eps_to_x(eps: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """x = (x_t - sigma eps) / alpha"""
    return linear(1.0 / at.alpha, x_t, -at.sigma / at.alpha, eps)


def x_to_eps(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """eps = (x_t - alpha x) / sigma"""
    return linear(1.0 / at.sigma, x_t, -at.alpha / at.sigma, x)


def score_to_x(score: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """Tweedie's formula: x = (x_t + sigma^2 score) / alpha"""
    return linear(1.0 / at.alpha, x_t, at.sigma**2 / at.alpha, score)


def x_to_score(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """score = (alpha x - x_t) / sigma^2"""
    return linear(-1.0 / at.sigma**2, x_t, at.alpha / at.sigma**2, x)


def v_to_x(v: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """x = (alpha x_t - sigma v) / (alpha^2 + sigma^2), whose denominator is 1 on a variance-preserving path"""
    r2 = at.alpha**2 + at.sigma**2
    return linear(at.alpha / r2, x_t, -at.sigma / r2, v)


def x_to_v(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """v = alpha eps - sigma x = (alpha x_t - (alpha^2 + sigma^2) x) / sigma"""
    return linear(at.alpha / at.sigma, x_t, -(at.alpha**2 + at.sigma**2) / at.sigma, x)


def velocity_to_x(velocity: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """x = (sigma' x_t - sigma velocity) / (sigma' alpha - sigma alpha')"""
    scale = at.d_sigma * at.alpha - at.sigma * at.d_alpha
    return linear(at.d_sigma / scale, x_t, -at.sigma / scale, velocity)


def x_to_velocity(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """velocity = alpha' x + sigma' eps"""
    return linear(at.d_alpha, x, at.d_sigma, x_to_eps(x, x_t, at))


def x_to_x(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """The identity, which completes the tables below."""
    return x


TO_X = {"x": x_to_x, "eps": eps_to_x, "score": score_to_x, "v": v_to_x, "velocity": velocity_to_x}
FROM_X = {"x": x_to_x, "eps": x_to_eps, "score": x_to_score, "v": x_to_v, "velocity": x_to_velocity}


def convert(value: Tensor, source: str, target: str, x_t: Tensor, at: PathPoint) -> Tensor:
    """Turn a prediction of `source` into the prediction of `target` at the same x_t."""
    return value if source == target else FROM_X[target](TO_X[source](value, x_t, at), x_t, at)
