"""Hubness: whether a few points are among the nearest neighbours of very many others.

N_k(i) counts the points that have point i among their k nearest neighbours; its mean is k. In high dimensions its law
becomes skewed to the right even for a normal sample: points near the centre are hubs, and many points are nobody's
neighbour (Radovanovic, Nanopoulos and Ivanovic 2010, "Hubs in space", JMLR 11, sec. 3). The skewness therefore says
something of points only next to that of a normal sample with as many points and dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..numerics import random
from ..numerics.nearest import nearest_others
from .statistics import check_features

NEIGHBOURS = 10  # k, as in Radovanovic et al.
# Points that are looked at; the search takes time in the square of their number.
MOST = 2_000
DRAWS = 5  # normal samples: the skewness of one differs from that of the next by a fifth or more


@dataclass(frozen=True)
class Hubness:
    """The skewness of the k-occurrences of some points, and of normal samples of the same size and dimension.

    Args:
        skewness: Of the points; nan where all have the same k-occurrences.
        of_normal: The mean over samples of as many draws from N(0, I).
        spread: The standard deviation over these samples.
        largest: The largest k-occurrence of the points.
        k: The number of neighbours.
    """

    skewness: float
    of_normal: float
    spread: float
    largest: int
    k: int


def occurrences(points: Float[Tensor, " n d"], k: int = NEIGHBOURS) -> Int[Tensor, " n"]:
    """N_k of each point: how many others have it among their k nearest neighbours, shape (N,).

    Raises:
        UserError: For points that are no finite numbers of shape (N, d), and a k not from 1 to N - 1.
    """
    check_features(points)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < len(points):
        raise UserError(f"k: found {k!r} for {len(points)} points; accepted: 1 to {len(points) - 1}")
    return torch.bincount(nearest_others(points, k)[1].flatten(), minlength=len(points))


def skewness_of(counts: Int[Tensor, " n"]) -> float:
    """E[(N - mean)^3] / std^3, without corrections for the size of the sample; nan where all are equal."""
    centred = counts.double() - counts.double().mean()
    std = float(centred.square().mean().sqrt())
    return float(centred.pow(3).mean()) / std**3 if std else math.nan


def hubness(points: Any, k: int = NEIGHBOURS, seed: int = 0) -> Hubness:
    """The hubness of points, (N, d), of which the first `MOST` in the fixed order are looked at.

    Args:
        points: The points.
        k: The number of neighbours.
        seed: Of the normal samples.

    Raises:
        UserError: As `occurrences`.
    """
    check_features(points)
    if len(points) > MOST:
        points = points[random.fixed_subset(len(points), MOST).to(points.device)]
    counts, rows, shape = occurrences(points, k), torch.arange(len(points)), tuple(points.shape[1:])

    def normal(draw: int) -> Tensor:
        return random.normal(seed, rows, draw, shape, random.STREAM_EVALUATE, torch.float64, points.device)

    others = torch.tensor([skewness_of(occurrences(normal(draw), k)) for draw in range(DRAWS)], dtype=torch.float64)
    return Hubness(skewness_of(counts), float(others.mean()), float(others.std()), int(counts.max()), k)
