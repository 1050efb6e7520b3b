"""What a network may predict, and the conversions between predictions: pure functions of the path.

With x_t = alpha x + sigma eps, knowing one of these is knowing all:

    x         the clean datum
    eps       the noise                           x_t = alpha x + sigma eps
    score     grad log p(x_t)                     score = -eps / sigma
    v         (Salimans and Ho 2022, 2202.00512)  v = alpha eps - sigma x
    velocity  d x_t / dt along the path           velocity = alpha' x + sigma' eps

Each pair `a_to_x` and `x_to_a` is exact algebra in both directions; every other conversion goes through x.
All coefficients broadcast against x_t (see `pad_dims_like`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..broadcasting import pad_dims_like
from ..schedules import Schedule

NAMES = ("x", "eps", "score", "v", "velocity")


@dataclass(frozen=True)
class PathPoint:
    """The path at a time: alpha, sigma and their derivatives, shaped to broadcast against a batch."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @classmethod
    def at(cls, schedule: Schedule, t: Tensor, x: Tensor) -> PathPoint:
        """The point at time `t`, () or (B,), in the dtype of `x` (computed in the dtype of `t`)."""
        values = (*schedule(t), *schedule.derivatives(t))
        return cls(*(pad_dims_like(value, x).to(x.dtype) for value in values))


def eps_to_x(eps: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """x = (x_t - sigma eps) / alpha"""
    return (x_t - at.sigma * eps) / at.alpha


def x_to_eps(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """eps = (x_t - alpha x) / sigma"""
    return (x_t - at.alpha * x) / at.sigma


def score_to_x(score: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """Tweedie's formula: x = (x_t + sigma^2 score) / alpha"""
    return (x_t + at.sigma**2 * score) / at.alpha


def x_to_score(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """score = (alpha x - x_t) / sigma^2"""
    return (at.alpha * x - x_t) / at.sigma**2


def v_to_x(v: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """x = (alpha x_t - sigma v) / (alpha^2 + sigma^2), whose denominator is 1 on a variance-preserving path"""
    return (at.alpha * x_t - at.sigma * v) / (at.alpha**2 + at.sigma**2)


def x_to_v(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """v = alpha eps - sigma x"""
    return at.alpha * x_to_eps(x, x_t, at) - at.sigma * x


def velocity_to_x(velocity: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """x = (sigma' x_t - sigma velocity) / (sigma' alpha - sigma alpha')"""
    return (at.d_sigma * x_t - at.sigma * velocity) / (at.d_sigma * at.alpha - at.sigma * at.d_alpha)


def x_to_velocity(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """velocity = alpha' x + sigma' eps"""
    return at.d_alpha * x + at.d_sigma * x_to_eps(x, x_t, at)


def x_to_x(x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
    """The identity, so that the tables below are whole."""
    return x


TO_X = {"x": x_to_x, "eps": eps_to_x, "score": score_to_x, "v": v_to_x, "velocity": velocity_to_x}
FROM_X = {"x": x_to_x, "eps": x_to_eps, "score": x_to_score, "v": x_to_v, "velocity": x_to_velocity}


def convert(value: Tensor, source: str, target: str, x_t: Tensor, at: PathPoint) -> Tensor:
    """Turn a prediction of `source` into the prediction of `target` at the same x_t."""
    return value if source == target else FROM_X[target](TO_X[source](value, x_t, at), x_t, at)
