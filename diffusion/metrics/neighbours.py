"""Nearest-neighbour metrics: fidelity and diversity separately, and copies of training images.

With B_k(z_j) the ball around z_j up to its k-th nearest neighbour in its own set,

    precision = share of samples in some B_k(reference_j)       recall = share of the reference in some B_k(sample_i)
    density   = average number of balls B_k(reference_j) that contain a sample, over k
    coverage  = share of the balls B_k(reference_j) that contain some sample

(Kynkaanniemi et al. 2019, arXiv 1904.06991, k = 3; Naeem et al. 2020, arXiv 2002.09797, k = 5: an outlier of the
reference inflates precision more than density, one of the samples recall and not coverage.) For N samples and M
reference images drawn from the same law, whatever it is, E[density] = 1 and

    E[coverage] = 1 - prod_{i=1..k} (M - i) / (N + M - i).

All four depend on the numbers of images.

Memorisation: a model that has learned the law and not memorised the training set draws images as far from their nearest
training image as fresh data. The fraction of samples nearer than the 1st percentile of held-out images' distances is
then 1 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..numerics.nearest import nearest, nearest_others, square_tables
from .statistics import check_features

# Numbers of the training set in float64 at once.
_BLOCK = 2**25
# Rounding error of squared distances by matrix products, relative to |a|^2 + |b|^2; a point on the rim counts as
# inside.
_ROUNDING = 1e-13
QUANTILE = 0.01


def precision_recall(features: Any, reference: Any, k: Any = 3) -> tuple[float, float]:
    """Improved precision and recall of samples, from their features and those of a reference.

    Raises:
        UserError: For a k that is not below both numbers of features.
    """
    _check(features, reference, k)
    precision = float((_inside(features, reference, k)[0] > 0).double().mean())
    recall = float((_inside(reference, features, k)[0] > 0).double().mean())
    return precision, recall


def density_coverage(features: Any, reference: Any, k: Any = 5) -> tuple[float, float]:
    """Density and coverage of samples, from their features and those of a reference.

    Raises:
        UserError: For a k that is not below both numbers of features.
    """
    _check(features, reference, k)
    holding, filled = _inside(features, reference, k)
    return float(holding.double().mean()) / k, float(filled.double().mean())


def _inside(queries: Tensor, points: Tensor, k: int) -> tuple[Int[Tensor, " n"], Bool[Tensor, " m"]]:
    """For each query the number of balls of `points` around it, and for each ball whether it contains a query."""
    radii = nearest_others(points, k)[0][:, -1]
    holding, filled = [], torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for _, squares, scale in square_tables(queries, points):
        inside = squares <= radii.square() + _ROUNDING * scale
        holding.append(inside.sum(1))
        filled |= inside.any(0)
    return torch.cat(holding), filled


def _check(features: Any, reference: Any, k: Any) -> None:
    check_features(features)
    check_features(reference)
    n = min(len(features), len(reference))
    if features.shape[1] != reference.shape[1]:
        dimensions = f"{features.shape[1]} and {reference.shape[1]}"
        raise UserError(f"features: found dimensions {dimensions}; must be of one extractor")
    if isinstance(k, bool) or not isinstance(k, int):
        raise UserError(f"k: found {k!r}; must be a whole number")
    if not 1 <= k < n:
        raise UserError(f"k: found {k} for {n} features; accepted: 1 to {n - 1}")


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How near samples are to training images, compared with fresh data.

    Args:
        share: The fraction of samples no farther than `threshold` from a training image.
        expected: The same fraction of the held-out images: 0.01, or more with ties.
        std_error: Of `share` as an estimate of `expected`: the binomial errors of both sets.
        threshold: The 1st percentile of the held-out images' distances.
        distances: The distance of each sample to its nearest training image, shape (N,), float64.
        neighbours: Its row, shape (N,).
    """

    share: float
    expected: float
    std_error: float
    threshold: float
    distances: Float[Tensor, " n"]
    neighbours: Int[Tensor, " n"]


def memorisation(samples: Tensor, training: Tensor, held_out: Tensor, quantile: float = QUANTILE) -> Memorisation:
    """The nearest-training-image check, in pixels or features.

    Args:
        samples: Images or features, shape (N, *dims).
        training: Those that the model was trained on, shape (M, *dims).
        held_out: Those of the same law that it was not trained on, shape (T, *dims).
        quantile: The quantile of the held-out images' distances that defines near.

    Raises:
        UserError: For a set without images, different shapes, values that are not finite, and a quantile outside
            0 to 1.
    """
    if not min(len(samples), len(training), len(held_out)):
        raise UserError("memorisation: found a set without images; samples, training and held-out images are needed")
    shapes = [tuple(x.shape[1:]) for x in (samples, training, held_out)]
    if len(set(shapes)) > 1:
        raise UserError(f"memorisation: found samples, training and held-out images of {shapes}; must be of one shape")
    for x in (samples, training, held_out):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise UserError("memorisation: found values that are not finite; no distance is of them")
    if not 0.0 <= quantile <= 1.0:
        raise UserError(f"quantile: found {quantile}; must be from 0 to 1")
    distances, neighbours = nearest_in(samples, training)
    fresh = nearest_in(held_out, training)[0]
    threshold = fresh.sort().values[max(0, math.ceil(quantile * len(fresh)) - 1)]
    share, expected = (float((found <= threshold).double().mean()) for found in (distances, fresh))
    variance = share * (1.0 - share) / len(distances) + expected * (1.0 - expected) / len(fresh)
    return Memorisation(share, expected, math.sqrt(variance), float(threshold), distances, neighbours)


def nearest_in(queries: Tensor, points: Tensor) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The distance of each query, (N, *dims), to the nearest of many points, (M, *dims) of any type, and its row."""
    queries, points = queries.flatten(1), points.flatten(1)
    best = torch.full((len(queries),), math.inf, dtype=torch.float64, device=queries.device)
    which = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    size = max(1, _BLOCK // points.shape[1])
    for start in range(0, len(points), size):
        block = points[start : start + size].to(queries.device).double()
        distances, rows = nearest(queries.double(), block)
        closer = distances[:, 0] < best
        best = torch.where(closer, distances[:, 0], best)
        which = torch.where(closer, rows[:, 0] + start, which)
    return best, which


def smallest_in(queries: Tensor, points: Tensor, k: int) -> Float[Tensor, " n k"]:
    """The k smallest distances of each query, (N, *dims), to many points, (M, *dims) of any type, ascending."""
    queries, points = queries.flatten(1).double(), points.flatten(1)
    best = torch.empty(len(queries), 0, dtype=torch.float64, device=queries.device)
    for block in points.split(max(1, _BLOCK // points.shape[1])):
        distances, _ = nearest(queries, block.to(queries.device).double(), min(k, len(block)))
        best = torch.cat((best, distances), 1).sort(1).values[:, :k]
    return best
