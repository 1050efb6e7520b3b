"""Linear operators on data, for observations y = A x + noise.

Each is A with its adjoint (<A x, y> = <x, A^T y>) and the solution of (n I + v A A^T) u = y, in closed form because
A A^T is diagonal: in pixels, or for the blur in the Fourier basis. From these follows the pseudo-inverse
A^+ = A^T (A A^T)^+, the inverse of A on its row space and zero elsewhere: A A^+ A = A, A^+ A A^+ = A^+.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...numerics.arrays import whole_number
from ...numerics.broadcasting import pad_dims_like
from ...numerics.placement import Copies
from ..given import positive_number, real_number, tensor_of

_POOLS = {1: torch.nn.functional.avg_pool1d, 2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey, ITU-R BT.601


class LinearOperator(ABC):
    """An abstract linear map of a batch of data (B, *shape) to a batch of observations (B, *observed)."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, " b *dims"]) -> Float[Tensor, " b *observed"]:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, " b *observed"]) -> Float[Tensor, " b *dims"]:
        """A^T y."""

    @abstractmethod
    def solve(
        self, y: Float[Tensor, " b *observed"], signal: Float[Tensor, " *b"], noise: Float[Tensor, " *b"]
    ) -> Float[Tensor, " b *observed"]:
        """(noise I + signal A A^T)^+ y.

        Args:
            y: Shape (B, *observed).
            signal: v, the variance of x, (), then on the CPU, or (B,); not negative.
            noise: n, the variance of the noise, likewise.
        """

    def pseudo_inverse(self, y: Float[Tensor, " b *observed"]) -> Float[Tensor, " b *dims"]:
        """A^+ y: the least-squares solution of A x = y with the smallest norm."""
        return self.adjoint(self.solve(y, torch.ones((), dtype=y.dtype), torch.zeros((), dtype=y.dtype)))


def _divide(y: Tensor, gram: Tensor | float, signal: Tensor, noise: Tensor) -> Tensor:
    """(noise + signal gram)^+ y, where A A^T is diagonal with entries `gram`."""
    total = pad_dims_like(noise, y) + pad_dims_like(signal, y) * gram
    return y / torch.where(total > 0, total, 1.0) * (total > 0)


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """A x = the entries of x where `kept` is true, flattened: y is (B, M).

    Args:
        kept: Of the shape of a sample, at least one entry true; boolean, 0 and 1, or 0 and 255 as in a picture.

    Raises:
        UserError: For a mask that keeps nothing, and one with other numbers, which are ambiguous.
    """

    kept: Any
    _at: Copies = field(init=False, repr=False)

    def __post_init__(self):
        kept = tensor_of("mask", self.kept)
        if kept.dtype != torch.bool:
            values = kept.unique().tolist()
            if not (set(values) <= {0, 1} or set(values) <= {0, 255}):
                raise UserError(f"mask: found {values[:4]}; accepted: true and false, 0 and 1, or 0 and 255")
        object.__setattr__(self, "kept", kept.bool())
        if not bool(self.kept.any()):
            raise UserError("mask: keeps nothing; draw without an observation then")
        object.__setattr__(self, "_at", Copies(self.kept.flatten().nonzero()[:, 0]))

    def __call__(self, x):
        if x.shape[1:] != self.kept.shape:
            raise UserError(f"mask: of shape {tuple(self.kept.shape)}, for data of shape {tuple(x.shape[1:])}")
        return x.flatten(1)[:, self._at.on(x.device)]

    def adjoint(self, y):
        rows = y.new_zeros(len(y), self.kept.numel())
        return rows.index_copy(1, self._at.on(y.device), y).reshape(len(y), *self.kept.shape)

    def solve(self, y, signal, noise):
        return _divide(y, 1.0, signal, noise)


@dataclass(frozen=True)
class Downsample(LinearOperator):
    """A x = the means of squares of `factor` x `factor` pixels: (B, C, H, W) to (B, C, H / factor, W / factor).

    Of signals (B, C, L) and volumes (B, C, D, H, W) likewise, along all sides.

    Args:
        factor: The side of a square; it divides all sides.

    Raises:
        UserError: For a factor below 1, or an image that it does not divide.
    """

    factor: Any

    def __post_init__(self):
        object.__setattr__(self, "factor", whole_number("factor", self.factor, 1))

    def __call__(self, x):
        sides = x.shape[2:]
        if any(side % self.factor for side in sides):
            raise UserError(f"factor: {self.factor} does not divide an image of {' x '.join(map(str, sides))} pixels")
        if len(sides) not in _POOLS:
            raise UserError(f"factor: found data of {len(sides)} sides; means of blocks are taken of 1 to 3")
        return _POOLS[len(sides)](x, self.factor)

    def adjoint(self, y):
        sides = y.ndim - 2
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.factor, axis)
        return y / self.factor**sides

    def solve(self, y, signal, noise):
        return _divide(y, 1.0 / self.factor ** (y.ndim - 2), signal, noise)


@dataclass(frozen=True)
class Grey(LinearOperator):
    """A x = the weighted sum of the channels: (B, C, H, W) to (B, 1, H, W). Its inversion is colourisation.

    Args:
        weights: One per channel; the luma of red, green and blue by default.
    """

    weights: Any = LUMA
    _column: Copies = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "weights", tuple(real_number("weights", weight) for weight in self.weights))
        object.__setattr__(self, "_column", Copies(torch.tensor(self.weights, dtype=torch.float64).reshape(-1, 1, 1)))

    def _weights(self, like: Tensor) -> Tensor:
        return self._column.on(like.device).to(like.dtype)

    def __call__(self, x):
        if x.shape[1] != len(self.weights):
            raise UserError(f"grey: found images of {x.shape[1]} channels; needs {len(self.weights)}, one per weight")
        return (self._weights(x) * x).sum(1, keepdim=True)

    def adjoint(self, y):
        return self._weights(y) * y

    def solve(self, y, signal, noise):
        return _divide(y, math.fsum(weight**2 for weight in self.weights), signal, noise)


@dataclass(frozen=True)
class Blur(LinearOperator):
    """A x = x convolved with a Gaussian on a periodic image, channel by channel: (B, C, H, W) to the same shape.

    In the Fourier basis A is diagonal with the real entries h(w) = exp(-std^2 |w|^2 / 2), w in radians per pixel: A is
    self-adjoint. Frequencies attenuated below `floor` are removed altogether.

    Args:
        std: The standard deviation of the Gaussian, in pixels, positive.
        floor: From 0 to 1.

    Raises:
        UserError: For a std that is not positive, or a floor that is not from 0 to 1.
    """

    std: Any
    floor: Any = 1e-3

    def __post_init__(self):
        object.__setattr__(self, "std", positive_number("std", self.std))
        object.__setattr__(self, "floor", real_number("floor", self.floor))
        if not 0.0 <= self.floor <= 1.0:
            raise UserError(f"floor: found {self.floor:g}; must be from 0 to 1")

    def _transfer(self, like: Tensor) -> Tensor:
        height, width = like.shape[-2:]
        options = {"dtype": like.dtype, "device": like.device}
        rows, columns = torch.fft.fftfreq(height, **options), torch.fft.rfftfreq(width, **options)
        squared = (2.0 * math.pi) ** 2 * (rows[:, None].square() + columns.square())
        h = torch.exp(-0.5 * self.std**2 * squared)
        return torch.where(h >= self.floor, h, 0.0)

    def __call__(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x) * self._transfer(x), s=x.shape[-2:])

    def adjoint(self, y):
        return self(y)

    def solve(self, y, signal, noise):
        waves = _divide(torch.fft.rfft2(y), self._transfer(y).square(), signal, noise)
        return torch.fft.irfft2(waves, s=y.shape[-2:])
