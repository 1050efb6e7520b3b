"""The Frechet distance between normal distributions fitted to two sets of features (FID).

    d^2 = |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr (C_a^{1/2} C_b C_a^{1/2})^{1/2}

(Heusel et al. 2017, arXiv 1706.08500, eq. 6, whose (C_a C_b)^{1/2} has the same trace.) The symmetric product has real
eigenvalues >= 0, so rank-deficient covariances need neither a complex square root nor jitter.

The estimate from n samples is biased upwards, by about c / n with c depending on the law (Chong and Forsyth 2020, arXiv
1911.07023): figures with different n are not comparable. From G groups of samples, each left out in turn, the jackknife
(Efron and Tibshirani 1993, ch. 10 and 11) gives

    standard error^2 = (G - 1) / G  sum_g (d^2_(g) - mean)^2,        corrected = G d^2 - (G - 1) mean,

where the correction removes the 1 / n term. For d normal features it subtracts too much by a few per cent of the bias
at n = 4 d and by half of it at n = d (docs/quality.md has figures): it is reported for n >= 4 d. Both treat the
reference as fixed.

The groups follow a pseudo-random order of the samples: groups of a single class, as in a sorted folder, would make the
error and the correction several times too large. The order is that of the SHA-256 of the images' bytes (`image_keys`),
so no figure depends on the order of the files; features cannot be hashed instead, since their rounding depends on batch
shape and device. Without images it is a fixed permutation of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import UserError
from ..numerics.random import fixed_order, hashed_order
from .statistics import SPACE, FeatureStatistics

GROUPS = 20
# The minimum number of samples per feature for the correction (see the module docstring).
ENOUGH = 4


@dataclass(frozen=True)
class FrechetEstimate:
    """A Frechet distance from samples.

    Args:
        value: The distance (squared, as FID is).
        std_error: Over draws of the samples, with the reference fixed; nan for fewer than two groups.
        corrected: The value minus its bias of order 1 / n; nan likewise, and for fewer samples than `ENOUGH` times the
            features, for which it would subtract too much.
    """

    value: float
    std_error: float
    corrected: float


def matrix_sqrt(matrix: Float[Tensor, " d d"]) -> Float[Tensor, " d d"]:
    """The symmetric square root of a symmetric matrix; negative eigenvalues (rounding) are set to zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Frechet distance between the normal distributions of two statistics, in float64.

    Raises:
        UserError: For features with different extractors, shapes or levels, or a covariance of fewer than two features.
    """
    require_space(a, b)
    return _distance(a, b, matrix_sqrt(b.covariance))


def frechet_estimate(
    features: Float[Tensor, " n d"],
    reference: FeatureStatistics,
    groups: int = GROUPS,
    keys: Sequence[str] | None = None,
) -> FrechetEstimate:
    """The distance of samples from a reference, with its standard error and the bias-corrected value.

    Args:
        features: Of the samples, shape (N, d), N >= 2.
        reference: The statistics to compare with.
        groups: The number of groups the jackknife leaves out in turn, at most N / 2.
        keys: Distinct keys of the samples from `image_keys`, which determine the groups. None: a fixed permutation of
            the rows does, whose order then affects the error and the correction.

    Raises:
        UserError: For another number of keys than of features.
    """
    if keys is not None and len(keys) != len(features):
        raise UserError(f"keys: found {len(keys)} for {len(features)} features; needs one each")
    root = matrix_sqrt(reference.covariance)
    n, d = features.shape
    order = fixed_order(n) if keys is None else torch.tensor(hashed_order(keys))
    mixed = features[order.to(features.device)]
    chunks = torch.tensor_split(mixed, max(1, min(groups, n // 2)))
    parts = [FeatureStatistics.of(chunk) for chunk in chunks]
    value = _distance(reduce(FeatureStatistics.merge, parts), reference, root)
    count = len(parts)
    if count < 2:
        return FrechetEstimate(value, math.nan, math.nan)
    left_out = [reduce(FeatureStatistics.merge, parts[:g] + parts[g + 1 :]) for g in range(count)]
    values = torch.tensor([_distance(rest, reference, root) for rest in left_out], dtype=torch.float64)
    mean = float(values.mean())
    std_error = math.sqrt((count - 1) / count * float((values - mean).square().sum()))
    return FrechetEstimate(value, std_error, count * value - (count - 1) * mean if n >= ENOUGH * d else math.nan)


def image_keys(images: UInt8[Tensor, " n c h w"]) -> list[str]:
    """The SHA-256 of each image's bytes; equal ones (of a collapsed model) are distinguished by a counter."""
    seen: Counter[str] = Counter()
    keys = []
    for image in images.cpu().contiguous().numpy():
        content = hashlib.sha256(image.tobytes()).hexdigest()
        keys.append(f"{content} {seen[content]}")
        seen[content] += 1
    return keys


def require_space(a: FeatureStatistics, b: FeatureStatistics) -> None:
    """Refuse statistics of different features; those of unknown provenance must at least have the same dimension."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features: found dimensions {len(a.mean)} and {len(b.mean)}; must be of one extractor")
    if a.provenance is not None and b.provenance is not None:
        a.provenance.require_like(b.provenance, SPACE, "features")


def _distance(a: FeatureStatistics, b: FeatureStatistics, root_b: Tensor) -> float:
    cov_a, cov_b = a.covariance, b.covariance
    eigenvalues = torch.linalg.eigvalsh(root_b @ cov_a @ root_b)
    overlap = eigenvalues.clamp(min=0.0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * overlap
    return max(0.0, float(distance))  # rounding may make that of equal laws negative
