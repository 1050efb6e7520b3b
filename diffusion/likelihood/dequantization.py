"""Level indices and real values: the map between pixels in memory and the input of a denoiser.

L levels divide [low, high] into L bins of width w = (high - low) / L. Level k is the centre of its bin,

    x = low + (k + 1/2) w        ((2 k + 1) / L - 1 on [-1, 1]),

and uniform dequantisation spreads it over the bin, x = low + (k + u) w with u uniform in (0, 1). A density p on the
bins gives a lower bound on the probability of the level (Theis et al. 2016, arXiv 1511.01844, eq. 5, by Jensen):

    log P(k) = log integral of p over the bin >= E_u log p(x) + log w.

With x drawn from any q on the bin it is E_q [log p(x) - log q(x)], tight for q proportional to p. If a diffusion model
was trained on bin centres, its density at t_min has the noise of the path around each centre, and the truncated-normal
q is that noise truncated to the bin (i-DODE: Zheng et al. 2023, "Improved Techniques for Maximum Likelihood Estimation
for Diffusion ODEs", arXiv 2305.03935). With s = sigma / alpha at t_min,
tau = w / (2 s) and Z = erf(tau / sqrt 2),

    x = center + s z, |z| <= tau,    -log q(x) = z^2 / 2 + log(sqrt(2 pi) s Z)    for each dimension,
    the mean of which is its entropy   1/2 log(2 pi e s^2) + log Z - tau exp(-tau^2 / 2) / (sqrt(2 pi) Z).

The -log q of each draw is used, not its mean: log p - log q varies less than log p alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..denoisers.given import MOST_LEVELS, can_be_looked_at, type_of_levels
from ..errors import UserError

DEQUANTIZATIONS = ("uniform", "truncated-normal")

# The sum over the levels of a pixel is split into chunks of this many numbers.
_PIECE = 2**22


@dataclass(frozen=True)
class Dequantizer:
    """The map between level indices and [low, high].

    Args:
        levels: The number L of levels per dimension, 2 to 65,536: those of 16 bits.
        low: The lower end of the first bin.
        high: The upper end of the last bin.

    Raises:
        UserError: For another number of levels, or low >= high.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        if not 2 <= self.levels <= MOST_LEVELS:
            raise UserError(f"levels: found {self.levels}; accepted: 2 to {MOST_LEVELS}")
        if not self.low < self.high:
            raise UserError(f"low, high: found {self.low}, {self.high}; needs low < high")

    @property
    def width(self) -> float:
        """The width w of a bin."""
        return (self.high - self.low) / self.levels

    def places(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, " l"]:
        """The centres of all L bins, increasing."""
        return self.low + self.width * (torch.arange(self.levels, dtype=dtype) + 0.5)

    def center(
        self, images: Integer[Tensor, " b *dims"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, " b *dims"]:
        """The centres of the bins of `images`: clean data as the denoiser sees them.

        Raises:
            UserError: For an index that is not one of the levels.
        """
        return self._place(images, 0.5, dtype)

    def dequantize(
        self, images: Integer[Tensor, " b *dims"], u: Float[Tensor, " b *dims"]
    ) -> Float[Tensor, " b *dims"]:
        """Points of the bins of `images`, at the fractions `u` in (0, 1) of their widths; errors as `center`."""
        return self._place(images, u, u.dtype)

    def dequantize_truncated_normal(
        self, images: Integer[Tensor, " b *dims"], u: Float[Tensor, " b *dims"], std: float
    ) -> tuple[Float[Tensor, " b *dims"], Float[Tensor, " b"]]:
        """Points of N(center, std^2) truncated to the bins of `images`, at the quantiles `u`, and their log q.

        Args:
            images: Level indices, shape (B, *dims).
            u: Quantiles in (0, 1), float64 for the tails, shape (B, *dims).
            std: The standard deviation s, positive, in the units of [low, high].

        Returns:
            x of shape (B, *dims), and log q(x) in nats, shape (B,); for std much wider than a bin q is uniform.

        Raises:
            UserError: As `center`.
        """
        tau = 0.5 * self.width / std
        mass = math.erf(tau / math.sqrt(2.0))
        z = math.sqrt(2.0) * torch.erfinv(mass * (2.0 * u - 1.0))
        dims = images[0].numel()
        log_q = -0.5 * z.flatten(1).square().sum(1) - dims * math.log(math.sqrt(2.0 * math.pi) * std * mass)
        return self.center(images, u.dtype) + std * z, log_q

    def _place(self, images: Tensor, fraction: Tensor | float, dtype: torch.dtype) -> Tensor:
        if can_be_looked_at(images) and int(images.max()) >= self.levels:
            raise UserError(f"images: found level {int(images.max())}; accepted: 0 to {self.levels - 1}")
        return self.low + self.width * (images.to(dtype) + fraction)

    def quantize(self, x: Float[Tensor, " b *dims"]) -> Integer[Tensor, " b *dims"]:
        """The level whose bin contains x, the first or the last one for x outside."""
        return ((x - self.low) / self.width).floor().clamp(0, self.levels - 1).to(type_of_levels(self.levels))

    def regraded(self, images: Integer[Tensor, " b *dims"], levels: int) -> Integer[Tensor, " b *dims"]:
        """Images of another number of levels in these: each goes to the bin that its own centre is in.

        Raises:
            UserError: As `center`.
        """
        return self.quantize(replace(self, levels=levels).center(images, torch.float64))

    def log_jacobian(self, dims: int) -> float:
        """D log w: turns the log-density of dequantised data into a bound on the log-probability of the levels."""
        return dims * math.log(self.width)

    def level_log_prob(
        self, images: Integer[Tensor, " b *dims"], mean: Float[Tensor, " b *dims"], std: Float[Tensor, " *b_or_dims"]
    ) -> Float[Tensor, " b *dims"]:
        """log p(k | mean, std) of each pixel's level, normalised over the levels.

        p(k) = exp(-(x_k - mean)^2 / (2 std^2)) / sum over levels: the decoder p(x | z_0) proportional to q(z_0 | x)
        of variational diffusion models (Kingma et al. 2021, arXiv 2107.00630, sec. 4).

        Args:
            images: Level indices, shape (B, *dims).
            mean: The mean, in [low, high], shape (B, *dims).
            std: The standard deviation, broadcastable to `mean`.
        """
        std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
        centers = self.places(mean.dtype).to(mean.device)
        total = torch.full_like(mean, -math.inf)
        for some in centers.split(max(1, _PIECE // max(1, mean.numel()))):
            # (levels of this chunk, B, *dims)
            gaps = (some.reshape(-1, *(1,) * mean.ndim) - mean) / std
            total = torch.logaddexp(total, torch.logsumexp(-0.5 * gaps.square(), dim=0))
        return -0.5 * ((self.center(images, mean.dtype) - mean) / std).square() - total
