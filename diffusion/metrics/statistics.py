"""Mean and covariance of features, accumulated in float64 chunk by chunk, with their provenance.

Two sets of counts n_a, n_b, means m_a, m_b and scatters S = sum (z - m)(z - m)' merge exactly (Chan, Golub and LeVeque
1983): with delta = m_b - m_a and n = n_a + n_b,

    m = m_a + delta n_b / n,        S = S_a + S_b + delta delta' n_a n_b / n,        covariance = S / (n - 1).

The merge is symmetric and associative up to rounding, and subtracts no large numbers: a large mean loses no digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..storage import tensor_files
from ..storage.records import reading

# Fields in which two sets of features must agree for a meaningful distance.
SPACE = ("shape", "levels", "extractor", "extractor_sha256")


@dataclass(frozen=True)
class Provenance:
    """The provenance of features: all that their statistics depend on.

    Args:
        data: The name of the images.
        split: Which of them.
        images: Their number, before mirroring.
        sha256: Of their bytes.
        flips: Whether the mirror image of each is included.
        shape: (C, H, W) of an image.
        levels: The number of values a channel can take: 256, or 17 for the digits.
        extractor: The name of the feature network.
        extractor_sha256: Of its weights and preprocessing.
    """

    data: str
    split: str
    images: int
    sha256: str
    flips: bool
    shape: tuple[int, ...]
    levels: int
    extractor: str
    extractor_sha256: str

    def require_like(self, other: Provenance, keys: Iterable[str], what: str) -> None:
        """Refuse what differs.

        Args:
            other: The other provenance.
            keys: The fields that must agree.
            what: What would be compared, for the message.

        Raises:
            UserError: Naming each field that differs, and both values.
        """
        unlike = [key for key in keys if getattr(self, key) != getattr(other, key)]
        if unlike:
            found = ", ".join(f"{key} ({_short(getattr(self, key))}, {_short(getattr(other, key))})" for key in unlike)
            raise UserError(f"{what}: not comparable, unlike {found}")


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a SHA-256


def check_levels(name: str, images: Any) -> None:
    """Refuse real-valued images, as drawn by a model, where level indices are required.

    Raises:
        UserError: For anything but integers, (N, C, H, W).
    """
    if not isinstance(images, Tensor):
        raise UserError(f"{name}: found a {type(images).__name__}; needs a tensor of levels, (N, C, H, W)")
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool or images.ndim != 4:
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(f"{name}: found {found}; needs levels in uint8, (N, C, H, W)")


def check_features(features: Any) -> None:
    """Refuse features that no distance can be computed from.

    Raises:
        UserError: For another shape than (N, d), and numbers that are not finite.
    """
    if not isinstance(features, Tensor):
        raise UserError(f"features: found a {type(features).__name__}; needs a tensor of (N, d)")
    if features.ndim != 2 or not features.is_floating_point():
        raise UserError(f"features: found {features.dtype} of shape {tuple(features.shape)}; needs floats of (N, d)")
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        raise UserError(f"features: {bad} of {len(features)} are not finite; no figure is of them")


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, mean and scatter of features.

    Args:
        count: Their number.
        mean: Shape (d,), float64.
        scatter: The sum of (z - mean)(z - mean)', shape (d, d), float64.
        provenance: Where they come from; None if unknown.
    """

    count: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, " d d"]
    provenance: Provenance | None = None

    @classmethod
    def of(cls, features: Float[Tensor, " n d"], provenance: Provenance | None = None) -> FeatureStatistics:
        """Those of a chunk of features, shape (N, d), N >= 1."""
        check_features(features)
        z = features.double()
        mean = z.mean(0)
        z = z - mean
        return cls(len(z), mean, z.T @ z, provenance)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Those of both sets together; the provenance is that of the first."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, scatter, self.provenance)

    @property
    def covariance(self) -> Float[Tensor, " d d"]:
        """The unbiased covariance.

        Raises:
            UserError: For fewer than two features.
        """
        if self.count < 2:
            raise UserError(f"features: found {self.count}; a covariance needs at least 2")
        return self.scatter / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, with the provenance as its metadata, atomically."""
        known = {} if self.provenance is None else asdict(self.provenance)
        tensors = {"mean": self.mean, "scatter": self.scatter}
        tensor_files.write(path, tensors, {"count": str(self.count), "provenance": json.dumps(known)})

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read a file of `save`.

        Raises:
            UserError: For a file that is missing, none of `save`, or damaged.
        """
        tensors, metadata = tensor_files.read(path, "statistics", "provenance")
        with reading(f"{path}: its statistics are not those of a count, a mean and a covariance"):
            known = json.loads(metadata["provenance"])
            provenance = Provenance(**{**known, "shape": tuple(known["shape"])}) if known else None
            return cls(int(metadata["count"]), tensors["mean"], tensors["scatter"], provenance)
