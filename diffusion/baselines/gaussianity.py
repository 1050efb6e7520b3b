"""How close a set of codes is to N(0, I), the law of maximum entropy at unit variance.

Among all laws with unit variances the entropy d/2 log(2 pi e) of N(0, I) is the largest, so an autoencoder whose codes
have unit variances and maximal entropy has codes close to N(0, I). The nearest-neighbour entropy is biased in high
dimensions; it is compared with that of a normal sample of the same N and d, by the same estimator. So is the hubness,
which high dimensions have by themselves.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..metrics.hubness import NEIGHBOURS, Hubness, hubness
from ..numerics import random
from .entropy import knn_entropy, normal_entropy


@dataclass(frozen=True, eq=False)
class Gaussianity:
    """Departures of codes (N, d) from N(0, I).

    Attributes:
        count, dims: N and d.
        mean, std, skewness, excess_kurtosis: Of each dimension, shape (d,); 0, 1, 0, 0 for N(0, I).
        largest_correlation: The largest absolute correlation of two dimensions.
        ks: The Kolmogorov-Smirnov distance of each dimension from N(0, 1), shape (d,).
        ks_p_value: The probability of one as large for normal codes, by its limit law, shape (d,).
        entropy: The nearest-neighbour entropy of the codes, nats.
        entropy_of_normal_sample: That of N draws from N(0, I).
        normal_entropy: d/2 log(2 pi e), the value of both without the estimator's bias.
        hubness: Of the codes, next to that of normal samples; None for too few.
    """

    count: int
    dims: int
    mean: Float[Tensor, " d"] = field(repr=False)
    std: Float[Tensor, " d"] = field(repr=False)
    skewness: Float[Tensor, " d"] = field(repr=False)
    excess_kurtosis: Float[Tensor, " d"] = field(repr=False)
    largest_correlation: float
    ks: Float[Tensor, " d"] = field(repr=False)
    ks_p_value: Float[Tensor, " d"] = field(repr=False)
    entropy: float
    entropy_of_normal_sample: float
    normal_entropy: float
    hubness: Hubness | None

    @property
    def negentropy(self) -> float:
        """Entropy of a normal sample minus that of the codes, nats: about 0 for N(0, I), larger for anything else."""
        return self.entropy_of_normal_sample - self.entropy

    @property
    def p_value(self) -> float:
        """The p-value of the worst dimension's Kolmogorov-Smirnov distance, with Bonferroni's correction."""
        return min(1.0, self.dims * float(self.ks_p_value.min()))

    def summary(self) -> dict[str, tuple[str, str]]:
        """Each figure as text: (of the codes, for N(0, I)), for the worst dimension."""
        normal, found = f"{self.normal_entropy:.3f}", self.hubness
        hubs = ("unknown", "unknown")
        if found is not None:
            hubs = (f"{found.skewness:.2f}", f"{found.of_normal:.2f} ± {found.spread:.2f}")
        return {
            "codes, dimensions": (f"{self.count:,}, {self.dims}", ""),
            "largest |mean|": (f"{self.mean.abs().max():.3f}", "0"),
            "standard deviation": (f"{self.std.min():.3f} to {self.std.max():.3f}", "1"),
            "largest |skewness|": (f"{self.skewness.abs().max():.3f}", "0"),
            "largest |kurtosis - 3|": (f"{self.excess_kurtosis.abs().max():.3f}", "0"),
            "largest |correlation|": (f"{self.largest_correlation:.3f}", "0"),
            "largest Kolmogorov-Smirnov distance": (f"{self.ks.max():.3f}", "0"),
            "its p-value, times the dimensions": (f"{self.p_value:.2g}", "above 0.05"),
            "entropy, nats (d/2 log 2 pi e for the prior)": (f"{self.entropy:.3f}", normal),
            "entropy of as many normal draws, nats": (f"{self.entropy_of_normal_sample:.3f}", normal),
            "negentropy: the difference of the two": (f"{self.negentropy:+.3f}", "0"),
            f"hubness, the skewness of {NEIGHBOURS}-occurrences": (hubs[0], ""),
            "hubness of as many normal draws": (hubs[1], ""),
        }

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        values = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in asdict(self).items()}
        return {**values, "negentropy": self.negentropy}


def gaussianity(codes: Any, k: int = 3, seed: int = 0) -> Gaussianity:
    """Measure how close `codes` are to N(0, I).

    Args:
        codes: The codes, shape (N, d), N > max(k, 2); not of zero variance in any dimension.
        k: The neighbour of the entropy estimator.
        seed: The seed of the normal sample that the entropy is compared with.

    Raises:
        UserError: For too few codes, or a dimension in which they are constant.
    """
    from scipy.special import kolmogorov  # comes with scikit-learn; imported where needed, as it is slow to load

    codes = torch.as_tensor(codes)
    if codes.ndim != 2 or not bool(torch.isfinite(codes).all()):
        raise UserError(f"codes: found shape {tuple(codes.shape)}; needs finite numbers of shape (N, d)")
    n, d = codes.shape
    if n <= max(k, 2):
        raise UserError(f"codes: found {n}; needs more than {max(k, 2)}")
    z = codes.detach().cpu().double()
    mean, std = z.mean(0), z.std(0, correction=0)
    if not bool((std > 0).all()):
        raise UserError(f"codes: dimension {int((std <= 0).nonzero()[0])} has no variance: nothing is coded there")
    standard = (z - mean) / std
    correlation = (standard.T @ standard / n).fill_diagonal_(0.0)
    # the largest distance between the steps of the empirical distribution function and Phi, before and after each step
    phi = torch.special.ndtr(z.sort(dim=0).values)
    steps = torch.arange(n + 1, dtype=torch.float64)[:, None] / n
    ks = torch.maximum((steps[1:] - phi).amax(0), (phi - steps[:-1]).amax(0))
    # the finite-n correction of Stephens (1970)
    scaled = ks * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    normal = random.normal(seed, torch.arange(n), 0, (d,), random.STREAM_EVALUATE, torch.float64)
    return Gaussianity(
        count=n,
        dims=d,
        mean=mean,
        std=std,
        skewness=standard.pow(3).mean(0),
        excess_kurtosis=standard.pow(4).mean(0) - 3.0,
        largest_correlation=float(correlation.abs().max()),
        ks=ks,
        ks_p_value=torch.from_numpy(kolmogorov(scaled.numpy())),
        entropy=float(knn_entropy(z, k)),
        entropy_of_normal_sample=float(knn_entropy(normal, k)),
        normal_entropy=normal_entropy(d),
        hubness=hubness(z, seed=seed) if n > NEIGHBOURS + 1 else None,
    )
