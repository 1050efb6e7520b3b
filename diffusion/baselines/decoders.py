"""Observation models p(x | h): proper distributions over L grey levels for each pixel, given the decoder's output.

Level k is the bin [e_k, e_(k+1)] of [-1, 1], e_k = -1 + 2 k / L, and a discretised law with distribution function F has

    P(k) = F(e_(k+1)) - F(e_k),        with the first and the last bin extending to infinity,

so that the probabilities sum to one for any parameters and number of levels (Salimans et al. 2017, PixelCNN++, arXiv
1701.05517, eq. 2). Differences are computed in closed form from log F, without cancellation in the tails. Pixels and
channels are independent given h. A decoder outputs P numbers per pixel and channel, as channels in the order "(P C)".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import UserError
from .observation import ObservationModel, check_levels, log1mexp, log_ndtr, scale_of, with_ends


@dataclass(frozen=True)
class DiscretizedLogisticMixture(ObservationModel):
    """A mixture of K discretised logistics for each pixel and channel: F(e) = sum_i w_i sigmoid((e - m_i) / s_i).

    The parameters are K logits, K means and K log scales; at zero the means are spread over [-1, 1], as K identical
    components would remain identical.

    Args:
        levels: The number L of levels, 2 to 256.
        components: The number K.

    Raises:
        UserError: For K < 1 or a number of levels that uint8 cannot hold.
    """

    levels: int
    components: int = 5

    def __post_init__(self):
        check_levels(self.levels)
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
        inner = below + above + log1mexp(width / scale)
        log_mass = torch.where(images == 0, below, torch.where(images == self.levels - 1, above, inner))
        return torch.logsumexp(log_weight + log_mass, dim=0)

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        log_weight, mean, scale = self._mixture(params)
        inner = (log_weight.exp() * torch.sigmoid((self.edge(k, mean) - mean) / scale)).sum(0)
        return with_ends(inner, k, self.levels)

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log weights, means and scales, each (K, B, C, ...)."""
        logit, mean, raw_scale = self.split(params, 3, self.components)
        place = (torch.arange(self.components, dtype=mean.dtype, device=mean.device) + 0.5) * (2.0 / self.components)
        mean = mean + (place - 1.0).reshape(-1, *(1,) * (mean.ndim - 1))
        # logistic scales: at zero a third of the distance between means, or of [-1, 1]
        return F.log_softmax(logit, dim=0), mean, scale_of(raw_scale - math.log(3.0 * self.components), self.levels)


@dataclass(frozen=True)
class DiscretizedGaussian(ObservationModel):
    """A discretised Gaussian with a mean and scale per pixel and channel; the parameters are mean, log scale.

    Args:
        levels: The number L of levels, 2 to 256.

    Raises:
        UserError: For a number of levels that uint8 cannot hold.
    """

    levels: int
    parameters: ClassVar[int] = 2

    def __post_init__(self):
        check_levels(self.levels)

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        mean, raw_scale = self.split(params, 2)
        scale, width = scale_of(raw_scale, self.levels), self.dequantizer.width
        a = (self.edge(images, mean) - mean) / scale
        b = a + width / scale
        below, above = log_ndtr(b), log_ndtr(-a)
        # mirrored if the bin is above the mean: there Phi(b) - Phi(a) would cancel, Phi(-a) - Phi(-b) does not
        mirrored = a + b > 0
        larger = torch.where(mirrored, above, below)
        smaller = log_ndtr(torch.where(mirrored, -b, a))
        inner = larger + log1mexp(larger - smaller)
        return torch.where(images == 0, below, torch.where(images == self.levels - 1, above, inner))

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        mean, raw_scale = self.split(params, 2)
        edge = (self.edge(k, mean) - mean) / scale_of(raw_scale, self.levels)
        return with_ends(torch.special.ndtr(edge), k, self.levels)


@dataclass(frozen=True)
class Bernoulli(ObservationModel):
    """Binarised images: the parameter is the logit of level 1.

    Raises:
        UserError: For levels other than 2.
    """

    levels: int = 2
    parameters: ClassVar[int] = 1

    def __post_init__(self):
        if self.levels != 2:
            raise UserError(f"levels: found {self.levels}; Bernoulli takes 2")

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        (logit,) = self.split(params, 1)
        return F.logsigmoid(torch.where(images > 0, logit, -logit))

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        (logit,) = self.split(params, 1)
        return with_ends(torch.sigmoid(-logit), k, self.levels)


@dataclass(frozen=True)
class Categorical(ObservationModel):
    """Any distribution over the grey levels: the parameters are L logits.

    Args:
        levels: The number L of levels, 2 to 256.

    Raises:
        UserError: For a number of levels that uint8 cannot hold.
    """

    levels: int

    def __post_init__(self):
        check_levels(self.levels)

    @property
    def parameters(self) -> int:
        return self.levels

    def level_log_prob(
        self, images: UInt8[Tensor, " b *dims"], params: Float[Tensor, " b *params"]
    ) -> Float[Tensor, " b *dims"]:
        return F.log_softmax(self.split(params, self.levels), dim=0).gather(0, images.long()[None])[0]

    def cumulative(self, params: Float[Tensor, " b *params"], k: Int[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        total = F.softmax(self.split(params, self.levels), dim=0).cumsum(0)
        return with_ends(total.gather(0, (k - 1).clamp(min=0)[None])[0], k, self.levels)
