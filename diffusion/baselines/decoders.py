"""Observation models p(x | h): proper distributions over L levels for each pixel, given what a decoder puts out.

Level k is the bin [e_k, e_(k+1)] of [-1, 1], e_k = -1 + 2 k / L, and a discretised law with distribution function F has

    P(k) = F(e_(k+1)) - F(e_k),        the first and the last bin reaching out to infinity,

so that the levels' probabilities sum to one whatever the parameters and the number of levels (Salimans et al. 2017,
PixelCNN++, arXiv 1701.05517, eq. 2). Both differences are computed in closed form from log F, without cancellation in
the tails. Pixels and channels are independent given h. A decoder puts out P numbers a pixel and channel, as channels in
the order "(P C)".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import UserError
from ..likelihood.dequantization import Dequantizer

# Scales lie between exp(-5) bins (all mass in one bin) and exp(3) (flat on [-1, 1]): beyond them nothing is to be
# gained, and float32 would run out of digits.
_NARROWEST, _WIDEST = -5.0, 3.0


class ObservationModel(ABC):
    """p(x | h) for images of levels 0 .. L - 1: log-probability, mean and samples."""

    levels: int

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number P of parameters a pixel and channel."""

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

    def edge(self, k: Int[Tensor, " b *dims"], like: Tensor) -> Float[Tensor, " b *dims"]:
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
        if images.numel() and int(images.max()) >= self.levels:
            raise UserError(f"images: found level {int(images.max())}; accepted: 0 to {self.levels - 1}")
        return self.level_log_prob(images, params).flatten(1).sum(1)

    def mean(self, params: Float[Tensor, " b *params"]) -> Float[Tensor, " b *dims"]:
        """E[x | h], of the levels' centres in [-1, 1]: x_(L-1) - w sum_(k=1)^(L-1) P(level < k)."""
        k = self._zeros(params)
        total = torch.zeros(k.shape, dtype=_accurate(params), device=params.device)
        for level in range(1, self.levels):
            total += self.cumulative(params, k + level)
        width = self.dequantizer.width
        return 1.0 - 0.5 * width - width * total

    def sample(self, params: Float[Tensor, " b *params"], u: Float[Tensor, " b *dims"]) -> UInt8[Tensor, " b *dims"]:
        """The levels at which the distribution function passes `u`: draws, if `u` is uniform in (0, 1).

        Args:
            params: The decoder's output, shape (B, P C, *spatial).
            u: One number a pixel and channel, shape (B, C, *spatial).
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

    def _split(self, params: Tensor, *sizes: int) -> Tensor:
        """(B, P C, ...) -> (*sizes, B, C, ...), sizes multiplying to P, in float32 at least."""
        split = params.to(_accurate(params)).unflatten(1, (*sizes, -1))
        return split.movedim(tuple(range(1, 1 + len(sizes))), tuple(range(len(sizes))))


@dataclass(frozen=True)
class DiscretizedLogisticMixture(ObservationModel):
    """A mixture of K discretised logistics for each pixel and channel: F(e) = sum_i w_i sigmoid((e - m_i) / s_i).

    The parameters are K logits, K means and K log scales; at zero the means are spread over [-1, 1], as K equal
    components would stay equal for ever.

    Args:
        levels: The number L of levels, 2 to 256.
        components: The number K.

    Raises:
        UserError: For K < 1 or a number of levels that uint8 cannot hold.
    """

    levels: int
    components: int = 5

    def __post_init__(self):
        _check_levels(self.levels)
        if self.components < 1:
            raise UserError(f"components: found {self.components}; must be at least 1")

    @property
    def parameters(self) -> int:
        return 3 * self.components

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        log_weight, mean, scale = self._mixture(params)
        width = self.dequantizer.width
        a = (self.edge(images, mean) - mean) / scale
        b = a + width / scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
        below, above = F.logsigmoid(b), F.logsigmoid(-a)
        inner = below + above + _log1mexp(width / scale)
        log_mass = torch.where(images == 0, below, torch.where(images == self.levels - 1, above, inner))
        return torch.logsumexp(log_weight + log_mass, dim=0)

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        log_weight, mean, scale = self._mixture(params)
        inner = (log_weight.exp() * torch.sigmoid((self.edge(k, mean) - mean) / scale)).sum(0)
        return _with_ends(inner, k, self.levels)

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log weights, means and scales, each (K, B, C, ...)."""
        logit, mean, raw_scale = self._split(params, 3, self.components)
        place = (torch.arange(self.components, dtype=mean.dtype, device=mean.device) + 0.5) * (2.0 / self.components)
        mean = mean + (place - 1.0).reshape(-1, *(1,) * (mean.ndim - 1))
        # logistic scales: at zero a third of the distance between means, or of [-1, 1]
        return F.log_softmax(logit, dim=0), mean, scale_of(raw_scale - math.log(3.0 * self.components), self.levels)


@dataclass(frozen=True)
class DiscretizedGaussian(ObservationModel):
    """A discretised Gaussian of its own mean and scale for each pixel and channel; the parameters are mean, log scale.

    Args:
        levels: The number L of levels, 2 to 256.

    Raises:
        UserError: For a number of levels that uint8 cannot hold.
    """

    levels: int

    def __post_init__(self):
        _check_levels(self.levels)

    @property
    def parameters(self) -> int:
        return 2

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        mean, raw_scale = self._split(params, 2)
        scale, width = scale_of(raw_scale, self.levels), self.dequantizer.width
        a = (self.edge(images, mean) - mean) / scale
        b = a + width / scale
        below, above = torch.special.log_ndtr(b), torch.special.log_ndtr(-a)
        # mirrored where the bin lies above the mean: there Phi(b) - Phi(a) would cancel, Phi(-a) - Phi(-b) does not
        mirrored = a + b > 0
        larger = torch.where(mirrored, above, below)
        smaller = torch.special.log_ndtr(torch.where(mirrored, -b, a))
        inner = larger + _log1mexp(larger - smaller)
        return torch.where(images == 0, below, torch.where(images == self.levels - 1, above, inner))

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        mean, raw_scale = self._split(params, 2)
        edge = (self.edge(k, mean) - mean) / scale_of(raw_scale, self.levels)
        return _with_ends(torch.special.ndtr(edge), k, self.levels)


@dataclass(frozen=True)
class Bernoulli(ObservationModel):
    """Binarised images: the parameter is the logit of level 1.

    Raises:
        UserError: For levels other than 2.
    """

    levels: int = 2

    def __post_init__(self):
        if self.levels != 2:
            raise UserError(f"levels: found {self.levels}; Bernoulli takes 2")

    @property
    def parameters(self) -> int:
        return 1

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        (logit,) = self._split(params, 1)
        return F.logsigmoid(torch.where(images > 0, logit, -logit))

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        (logit,) = self._split(params, 1)
        return _with_ends(torch.sigmoid(-logit), k, self.levels)


@dataclass(frozen=True)
class Categorical(ObservationModel):
    """Any distribution over the levels: the parameters are L logits.

    Args:
        levels: The number L of levels, 2 to 256.

    Raises:
        UserError: For a number of levels that uint8 cannot hold.
    """

    levels: int

    def __post_init__(self):
        _check_levels(self.levels)

    @property
    def parameters(self) -> int:
        return self.levels

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        return F.log_softmax(self._split(params, self.levels), dim=0).gather(0, images.long()[None])[0]

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        total = F.softmax(self._split(params, self.levels), dim=0).cumsum(0)
        return _with_ends(total.gather(0, (k - 1).clamp(min=0)[None])[0], k, self.levels)


def scale_of(raw: Float[Tensor, " *dims"], levels: int) -> Float[Tensor, " *dims"]:
    """exp(raw), held smoothly above exp(-5) bins and cut off at exp(3)."""
    narrowest = math.log(2.0 / levels) + _NARROWEST
    return (narrowest + F.softplus(raw - narrowest)).clamp(max=_WIDEST).exp()


def _check_levels(levels: int) -> None:
    Dequantizer(levels)  # refuses what uint8 cannot hold


def _accurate(params: Tensor) -> torch.dtype:
    return torch.promote_types(params.dtype, torch.float32)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0."""
    return torch.log(-torch.expm1(-x))


def _with_ends(inner: Tensor, k: Tensor, levels: int) -> Tensor:
    """P(level < k), where `inner` is right for 0 < k < levels."""
    return torch.where(k <= 0, 0.0, torch.where(k >= levels, 1.0, inner))
