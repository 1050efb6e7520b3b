"""The kernel distance between two sets of features (KID): the unbiased squared MMD with the cubic kernel.

    k(x, y) = (x . y / d + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

(Binkowski et al. 2018, arXiv 1801.01401; Gretton et al. 2012, lemma 6.) It is unbiased for any number of samples, and
negative about half the time if the laws are equal. All pairs are used, whereas the usual recipe averages over random
subsets of 1,000: the same expectation, a smaller variance, and no randomness. Row sums of the three tables give every
leave-one-out value, so the jackknife's standard errors (Arvesen 1969) are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .statistics import check_features

# Entries of a (chunk, N) table of kernel values in memory at once.
_BLOCK = 2**22


@dataclass(frozen=True)
class KernelEstimate:
    """A kernel distance from samples.

    Args:
        value: The unbiased MMD^2.
        std_error: Over draws of the samples, with the reference fixed.
        std_error_both: Over draws of both sets.
    """

    value: float
    std_error: float
    std_error_both: float


class KernelReference:
    """The features of a reference that many samples are compared with; what is among themselves is summed once.

    Args:
        features: Shape (M, d).
    """

    def __init__(self, features: Float[Tensor, " m d"]):
        check_features(features)
        self.features = features.double()

    @cached_property
    def among(self) -> Float[Tensor, " m"]:
        """The sum of k(y_i, y_j) over the others j, shape (M,)."""
        return _sums(self.features, self.features)[0] - _kernel_of_itself(self.features)


def kernel_distance(
    features: Float[Tensor, " n d"], reference: Float[Tensor, " m same_d"] | KernelReference
) -> KernelEstimate:
    """The unbiased MMD^2 between the laws of two sets of features, in float64.

    Args:
        features: Of the samples, shape (N, d).
        reference: Of the reference, shape (M, d).

    Raises:
        UserError: For features of different dimensions, or fewer than three in a set.
    """
    check_features(features)
    if not isinstance(reference, KernelReference):
        reference = KernelReference(reference)
    x, y = features.double(), reference.features
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features: found dimensions {x.shape[1]} and {y.shape[1]}; must be of one extractor")
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise UserError(f"features: found {n} and {m}; the kernel distance with its standard error needs 3 of each")
    among_x, among_y = KernelReference(x).among, reference.among
    x_to_y, y_to_x = _sums(x, y)
    own_x, own_y, cross = among_x.sum(), among_y.sum(), x_to_y.sum()
    mean_x, mean_y = own_x / (n * (n - 1)), own_y / (m * (m - 1))
    value = mean_x + mean_y - 2.0 * cross / (n * m)
    without_x = (own_x - 2.0 * among_x) / ((n - 1) * (n - 2)) + mean_y - 2.0 * (cross - x_to_y) / ((n - 1) * m)
    without_y = (own_y - 2.0 * among_y) / ((m - 1) * (m - 2)) + mean_x - 2.0 * (cross - y_to_x) / (n * (m - 1))
    variance_x, variance_y = _jackknife_variance(without_x), _jackknife_variance(without_y)
    return KernelEstimate(float(value), variance_x**0.5, (variance_x + variance_y) ** 0.5)


def _sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the table k(x_i, y_j) along rows, shape (N,), and along columns, shape (M,)."""
    rows, columns = [], torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for some in x.split(max(1, _BLOCK // len(y))):
        table = (some @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)
        rows.append(table.sum(1))
        columns += table.sum(0)
    return torch.cat(rows), columns


def _kernel_of_itself(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1.0) ** 3


def _jackknife_variance(without: Tensor) -> float:
    n = len(without)
    return float((without - without.mean()).square().sum() * ((n - 1) / n))
