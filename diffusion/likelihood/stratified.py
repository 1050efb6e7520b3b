"""Stratified draws of a noise level: K of them an image, one in each of K equal strata.

The standard error of an image comes from second differences of neighbouring strata, (f_{i-1} - 2 f_i + f_{i+1})^2 / 6,
which see the noise and nothing of a linear trend: exact for strata so many that the rest of the trend is small, and too
large, not too small, before (Wolter 2007, Introduction to Variance Estimation, sec. 8.2). A stratum at an end is in
one of them where others are in three; first differences there, (f_0 - f_1)^2 / 2, make up for it, so that the noise of
every pair of strata is counted twice in all (without them the error of 12 steps of a path is 3 % too small).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import random

# Noise is drawn at step i for evaluation i; this is apart from any of them.
_STEP_POSITIONS = 2**31


def stratified_positions(seed: int, indices: Int[Tensor, " b"], count: int) -> Float[Tensor, " b k"]:
    """Uniform draws in (0, 1), the i-th of a row in its i-th stratum; a row depends on (seed, index) only."""
    u = random.uniform(seed, indices, _STEP_POSITIONS, (count,), random.STREAM_EVALUATE, torch.float64)
    return (torch.arange(count, dtype=torch.float64) + u) / count


def stratified_error(values: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
    """The standard error of the sum over strata, from the differences above; nan for fewer than three."""
    count = values.shape[1]
    if count < 3:
        return torch.full_like(values[:, 0], math.nan)
    second = values[:, :-2] - 2.0 * values[:, 1:-1] + values[:, 2:]
    at_ends = (values[:, 0] - values[:, 1]).square() + (values[:, -1] - values[:, -2]).square()
    return (second.square().sum(1) / 6.0 + at_ends / 2.0).sqrt()


def squares(x: Float[Tensor, " b *dims"]) -> Float[Tensor, " b"]:
    """|x|^2 of each row, in float64."""
    return x.double().flatten(1).square().sum(1)
