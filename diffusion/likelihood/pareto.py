"""The tail of a sample of weights: the shape k of a generalised Pareto distribution fitted to the largest of them.

A distribution with tail shape k has finite moments of orders below 1 / k: a variance for k < 1/2. For importance
weights Vehtari et al. 2024 (Pareto smoothed importance sampling, arXiv 1507.02646) find in practice that means of K
weights are reliable for k below min(1 - 1 / log10 K, 0.7). The fit is the quasi-Bayesian one of Zhang and Stephens 2009
(Technometrics 51), with the weak prior at k = 1/2, worth 10 exceedances, of Vehtari et al., appendix G.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Exceedances that a fit needs.
FEWEST = 5
_PRIOR_SHAPE, _PRIOR_COUNT = 0.5, 10
# Weights that differ by less than this share have no tail but rounding.
_CONSTANT = 1e-9


def tail_size(count: int) -> int:
    """The number of exceedances taken of so many weights: min(K / 5, 3 sqrt(K)) (arXiv 1507.02646, eq. 13)."""
    return math.ceil(min(count / 5.0, 3.0 * math.sqrt(count)))


def reliable_below(count: int) -> float:
    """The tail shape from which on a mean of so many weights is not to be trusted (the module's text)."""
    return min(1.0 - 1.0 / math.log10(count), 0.7)


def tail_shape(log_w: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
    """The shape k of the tail of each row's weights; nan for fewer than `FEWEST` exceedances, 0 for equal weights."""
    size = tail_size(log_w.shape[1])
    if size < FEWEST:
        return torch.full_like(log_w[:, 0], math.nan)
    top = log_w.topk(size + 1, dim=1).values
    w = (top - top[:, :1]).exp()
    exceedances = (w[:, :-1] - w[:, -1:]).flip(1)  # from the least
    shape = _fit(exceedances)
    return torch.where(exceedances[:, -1] > _CONSTANT, shape, 0.0)


def _fit(x: Float[Tensor, " b n"]) -> Float[Tensor, " b"]:
    """k of exceedances x in increasing order, by Zhang and Stephens' mean over a grid of b = -k / sigma."""
    n = x.shape[1]
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    points = 30 + math.isqrt(n)
    j = torch.arange(1, points + 1, dtype=x.dtype)
    quartile = x[:, math.floor(n / 4 + 0.5) - 1, None]
    b = 1.0 / x[:, -1:] + (1.0 - (points / (j - 0.5)).sqrt()) / (3.0 * quartile)  # (B, points)
    shapes = torch.log1p(-b[:, :, None] * x[:, None]).mean(2)
    log_likelihood = n * ((-b / shapes).log() - shapes - 1.0)
    best = (b * log_likelihood.softmax(1)).sum(1, keepdim=True)
    shape = torch.log1p(-best * x).mean(1)
    return (n * shape + _PRIOR_COUNT * _PRIOR_SHAPE) / (n + _PRIOR_COUNT)
