"""The base of observation models p(x | h): a distribution over L grey levels for each pixel and channel.

A decoder outputs P numbers per pixel and channel, as channels in the order "(P C)"; pixels and channels are independent
given h. A model defines the log-probabilities of the levels and the cumulative distribution; mean and samples follow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from ..denoisers.given import can_be_looked_at
from ..errors import UserError
from ..likelihood.dequantization import Dequantizer

# Scales are between exp(-3) bins (all mass in one bin) and exp(3) (flat on [-1, 1]): nothing is gained beyond, and
# float32 would lose its digits.
_NARROWEST, _WIDEST = -3.0, 3.0


class ObservationModel(ABC):
    """p(x | h) for images of levels 0 .. L - 1: log-probability, mean and samples."""

    levels: int

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number P of parameters per pixel and channel."""

    @abstractmethod
    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        """log P(level) of each pixel and channel in nats."""

    @abstractmethod
    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        """P(level < k) for k in 0 .. L."""

    @property
    def dequantizer(self) -> Dequantizer:
        """The levels and their places in [-1, 1]."""
        return Dequantizer(self.levels)

    def edge(self, k: Integer[Tensor, " b *dims"], like: Tensor) -> Float[Tensor, " b *dims"]:
        """e_k, the lower edge of level k, in the dtype of `like`."""
        return -1.0 + self.dequantizer.width * k.to(like.dtype)

    def log_prob(self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]) -> Float[Tensor, " b"]:
        """log p(x | h) in nats, summed over pixels and channels.

        Args:
            images: Level indices, shape (B, C, *spatial).
            params: The decoder's output, shape (B, P C, *spatial).

        Raises:
            UserError: For an index that is not one of the levels, or parameters of another shape.
        """
        expected = (len(images), self.parameters * images.shape[1], *images.shape[2:])
        if tuple(params.shape) != expected:
            raise UserError(f"params: found shape {tuple(params.shape)}; accepted: {expected}")
        if can_be_looked_at(images) and int(images.max()) >= self.levels:
            raise UserError(f"images: found level {int(images.max())}; accepted: 0 to {self.levels - 1}")
        return self.level_log_prob(images, params).flatten(1).sum(1)

    def mean(self, params: Float[Tensor, " b *params"]) -> Float[Tensor, " b *dims"]:
        """E[x | h], over the bin centres in [-1, 1]: x_(L-1) - w sum_(k=1)^(L-1) P(level < k)."""
        k = self._zeros(params)
        total = torch.zeros(k.shape, dtype=accurate(params), device=params.device)
        for level in range(1, self.levels):
            total += self.cumulative(params, k + level)
        width = self.dequantizer.width
        return 1.0 - 0.5 * width - width * total

    def sample(self, params: Float[Tensor, " b *params"], u: Float[Tensor, " b *dims"]) -> UInt8[Tensor, " b *dims"]:
        """The levels at which the distribution function crosses `u`: samples, if `u` is uniform in (0, 1).

        Args:
            params: The decoder's output, shape (B, P C, *spatial).
            u: One number per pixel and channel, shape (B, C, *spatial).
        """
        low = self._zeros(params)
        high = low + (self.levels - 1)
        for _ in range((self.levels - 1).bit_length()):  # bisection: the level is in low .. high
            middle = (low + high + 1) // 2
            beyond = self.cumulative(params, middle) <= u
            low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle - 1)
        return low.to(torch.uint8)

    def _zeros(self, params: Tensor) -> Tensor:
        """int64 zeros of the shape of the images that `params` belong to."""
        shape = (len(params), params.shape[1] // self.parameters, *params.shape[2:])
        return torch.zeros(shape, dtype=torch.int64, device=params.device)

    def split(self, params: Tensor, *sizes: int) -> Tensor:
        """(B, P C, ...) -> (*sizes, B, C, ...), with sizes multiplying to P, in at least float32."""
        split = params.to(accurate(params)).unflatten(1, (*sizes, -1))
        return split.movedim(tuple(range(1, 1 + len(sizes))), tuple(range(len(sizes))))


def scale_of(raw: Float[Tensor, " *dims"], levels: int) -> Float[Tensor, " *dims"]:
    """exp(raw), smoothly bounded below by exp(-3) bins and clamped at exp(3)."""
    narrowest = math.log(2.0 / levels) + _NARROWEST
    return (narrowest + F.softplus(raw - narrowest)).clamp(max=_WIDEST).exp()


def log_ndtr(x: Float[Tensor, " *dims"]) -> Float[Tensor, " *dims"]:
    """log Phi(x), Phi the standard normal distribution function, with its gradient.

    (The gradient of `torch.special.log_ndtr` in float32 is off by a quarter at x = -1,000 and infinite at -100,000.)
    """
    tail = x < -1.0
    t = torch.where(tail, x, -1.0)
    far = torch.log(0.5 * torch.special.erfcx(t * -math.sqrt(0.5))) - 0.5 * t.square()
    near = torch.log1p(-0.5 * torch.special.erfc(torch.where(tail, 0.0, x) * math.sqrt(0.5)))
    return torch.where(tail, far, near)


def check_levels(levels: int) -> None:
    """Refuse more levels than a distribution over each of them is made for."""
    Dequantizer(levels)
    if levels > 256:
        raise UserError(
            f"levels: found {levels:,}; an autoencoder's decoder takes 2 to 256; family 'diffusion' takes all"
        )


def accurate(params: Tensor) -> torch.dtype:
    return torch.promote_types(params.dtype, torch.float32)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0."""
    return torch.log(-torch.expm1(-x))


def with_ends(inner: Tensor, k: Tensor, levels: int) -> Tensor:
    """P(level < k), given `inner`, which is valid for 0 < k < levels."""
    return torch.where(k <= 0, 0.0, torch.where(k >= levels, 1.0, inner))
