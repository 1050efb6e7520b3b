"""Continuous data in units in which a network trains well, and back: fitted on the training part, exactly invertible.

    none       z = x
    standard   z = (x - mean) / std, of each channel (of a vector: each entry) over data and sides
    whiten     z = (x - mean) U Lambda^(-1/2), of all entries together: covariance U Lambda U^T of the training data

All are affine, so that densities carry over: log p(x) = log p(z) + log |det dz/dx|, the second a constant. What a
Gaussian's likelihood is does not depend on the normaliser. All is computed in float64: the mean of a quantity may be a
million times its spread.

The eigenvalues of `whiten` are those of the covariance plus a ridge of 1e-6 of their mean, so that directions in which
the data have no spread are scaled by a finite number.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..config import DataConfig
from ..errors import UserError, choose
from ..numerics.random import fixed_subset
from .files.mapped_rows import MappedRows

KINDS = DataConfig.words("normalize")
RIDGE = 1e-6
# Numbers of one sample that are whitened together: the matrix of so many is a part of the model file, in its text.
MOST_WHITENED = 1024
_UNDERFLOW = 1e-150  # a mean of which the square is none
_ROWS = 4  # a dimension, to tell narrow data from few


@dataclass(frozen=True, eq=False)
class Normalizer:
    """An affine map of data (B, *shape) to the units of a denoiser.

    Args:
        kind: `standard` or `whiten`; of `none` there is no normaliser.
        shape: The shape of one sample.
        mean: Of each channel, shape (C,), or of each entry, shape (D,), for `whiten`.
        variances: Of each channel, (C,), or the eigenvalues Lambda, (D,), with the ridge.
        directions: U, shape (D, D), its columns the eigenvectors; None for `standard`.
    """

    kind: str
    shape: tuple[int, ...]
    mean: Float64[Tensor, " c"]
    variances: Float64[Tensor, " c"]
    directions: Float64[Tensor, " c c"] | None = None

    def normalize(self, x: Float[Tensor, " b *shape"]) -> Float64[Tensor, " b *shape"]:
        """z of data x."""
        mean, std, directions = self._at(x)
        z = (self._rows(x) - mean) if directions is None else (self._rows(x) - mean) @ directions
        return (z / std).reshape(x.shape)

    def denormalize(self, z: Float[Tensor, " b *shape"]) -> Float64[Tensor, " b *shape"]:
        """x of z: the inverse of `normalize`."""
        mean, std, directions = self._at(z)
        x = self._rows(z) * std
        return (mean + (x if directions is None else x @ directions.T)).reshape(z.shape)

    @property
    def log_det(self) -> float:
        """log |det dz/dx|, in nats."""
        entries = math.prod(self.shape) // len(self.variances)  # that share a variance
        return -0.5 * entries * float(self.variances.log().sum())

    def at_shape(self, shape: Sequence[int]) -> Normalizer:
        """The same for data of other sides.

        Raises:
            UserError: For `whiten`, whose entries are those of one shape.
        """
        if self.directions is not None:
            raise UserError(f"size: the data are whitened, as of shape {self.shape}; another size has no such map")
        return replace(self, shape=tuple(shape))

    def on(self, device: torch.device) -> Normalizer:
        """The same on a device."""
        if self.mean.device == device:
            return self
        moved = None if self.directions is None else self.directions.to(device)
        return replace(self, mean=self.mean.to(device), variances=self.variances.to(device), directions=moved)

    def _rows(self, x: Tensor) -> Tensor:
        """The entries of each sample as a row, (B, D), or with their channels as the second axis, (B, C, rest)."""
        return x.double().reshape(len(x), len(self.mean), *(() if self.directions is not None else (-1,)))

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean, standard deviation and directions where x is, shaped to go with its rows."""
        here = self.on(x.device)
        std = here.variances.sqrt()
        if here.directions is not None:
            return here.mean, std, here.directions
        return here.mean[:, None], std[:, None], None

    def to_plain(self) -> dict[str, Any]:
        """As plain values for JSON, exactly."""
        found = {"kind": self.kind, "mean": self.mean.tolist(), "variances": self.variances.tolist()}
        if self.directions is None:
            return found
        matrix = np.ascontiguousarray(self.directions.cpu().numpy(), dtype="<f8")
        return {**found, "directions": base64.b64encode(matrix.tobytes()).decode("ascii")}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], shape: Sequence[int]) -> Normalizer:
        """The inverse of `to_plain`, for data of this shape.

        Raises:
            ValueError, KeyError, TypeError: For values that are not of `to_plain`, or do not fit the shape.
        """
        kind, dims = choose("kind", plain["kind"], [kind for kind in KINDS if kind != "none"]), math.prod(shape)
        mean, variances = (torch.tensor(plain[name], dtype=torch.float64) for name in ("mean", "variances"))
        count = dims if kind == "whiten" else shape[0]
        sound = mean.shape == variances.shape == (count,) and bool(mean.isfinite().all() and variances.isfinite().all())
        if not sound or not bool((variances > 0).all()) or (kind == "whiten" and dims > MOST_WHITENED):
            raise ValueError(f"a normaliser of {count} finite means and positive variances is needed")
        if kind == "standard":
            return cls(kind, tuple(shape), mean, variances)
        raw = base64.b64decode(plain["directions"], validate=True)
        if len(raw) != 8 * dims**2:
            raise ValueError(f"{dims} directions are needed")
        directions = torch.from_numpy(np.frombuffer(raw, "<f8").astype(np.float64).reshape(dims, dims))
        if (
            not bool(directions.isfinite().all())
            or float((directions.T @ directions).sub(torch.eye(dims)).abs().max()) > 1e-6
        ):
            raise ValueError("its directions are not orthogonal")
        return cls(kind, tuple(shape), mean, variances, directions)


def fit(
    kind: str,
    batches: Callable[[], Iterable[Tensor]],
    shape: Sequence[int],
    name: Callable[[int], str] = "channel {}".format,
) -> Normalizer | None:
    """The normaliser of this kind of the training data; None for `none`.

    Two passes: the mean, then the spread about it, which float64 keeps where the mean is far from 0.

    Args:
        kind: One of `KINDS`.
        batches: Makes the training data, in pieces (B, *shape), anew at each call.
        shape: The shape of one sample.
        name: How a channel is called in an error.

    Raises:
        UserError: For a single row; for `standard` where a channel has no spread: its density would be infinite; for
            `whiten` of more entries than `MOST_WHITENED`, and of data that are all equal.
    """
    choose("data.normalize", kind, KINDS)
    if kind == "none":
        return None
    dims = math.prod(shape)
    whiten = kind == "whiten"
    if whiten and dims > MOST_WHITENED:
        raise UserError(
            f"data.normalize: found 'whiten' for data of {dims:,} numbers each; it takes up to {MOST_WHITENED:,}; "
            "accepted: standard, none"
        )
    count = dims if whiten else shape[0]

    def pieces() -> Iterator[Tensor]:
        """(numbers of one channel, C): for `whiten` each entry is one."""
        for x in batches():
            yield x.double().reshape(len(x), count, -1).transpose(0, 1).flatten(1).T

    n, total = 0, torch.zeros(count, dtype=torch.float64)
    for rows in pieces():
        n, total = n + len(rows), total + rows.sum(0)
    if n < 2:
        raise UserError(
            f"data.normalize: found '{kind}' for a training part of {n} row; at least 2 have a spread; accepted: more "
            "rows, or none"
        )
    mean = total / n
    spread = torch.zeros((count, count) if whiten else count, dtype=torch.float64)
    for rows in pieces():
        gaps = rows - mean
        spread += gaps.T @ gaps if whiten else gaps.square().sum(0)
    spread /= n
    size = mean.abs()
    if not bool(spread.isfinite().all()) or bool(((size < _UNDERFLOW) & (size > 0)).any()):
        raise UserError(
            f"data.normalize: the numbers of the array are up to {float(size.max()):.1g} in size, whose squares are no "
            "numbers of float64; give them in other units"
        )
    if not whiten:
        flat = (spread <= (1e-12 * mean).square()).nonzero().flatten().tolist()
        if flat:
            raise UserError(
                f"data.normalize: {name(flat[0])} has the one value {float(mean[flat[0]]):g} in all training data, so "
                "that its density is infinite; leave it out of the array"
            )
        return Normalizer(kind, tuple(shape), mean, spread)
    variances, directions = torch.linalg.eigh(spread)
    average = float(variances.mean())
    if not average > 0:
        raise UserError("data.normalize: all training data are equal; there is nothing to learn")
    # an eigenvector is one up to its sign: the largest entry is positive, whatever library found it
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    directions = (directions * signs).contiguous()  # as it is read back: products depend on the layout in memory
    return Normalizer(kind, tuple(shape), mean, variances.clamp(min=0.0) + RIDGE * average, directions)


def narrowest(normalizer: Normalizer | None, data: MappedRows | Tensor) -> float:
    """The least deviation of normalised data along any direction; inf of too many numbers, or too few data, to know.

    It is 0 of data of which one number follows from the others by a linear rule.

    Args:
        normalizer: Of the data; None where their units are the denoiser's.
        data: The training data, (N, *shape), of which the first of the fixed order are looked at: the first rows of
            a sorted table are all alike.
    """
    dims = math.prod(data.shape[1:])
    if dims > MOST_WHITENED or len(data) < _ROWS * dims:
        return math.inf
    x = data[fixed_subset(len(data), min(len(data), max(2**11, _ROWS * dims)))]
    rows = (x.double() if normalizer is None else normalizer.normalize(x)).flatten(1)
    gaps = rows - rows.mean(0)
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gaps.T @ gaps / len(gaps))[0])))
