"""A denoiser for discrete data: the network predicts the prior of each pixel, Bayes' rule adds its noisy value.

A pixel of a discrete image has one of L values c_1 .. c_L. Given x_t it is c_k with the probability

    p(c_k | x_t)  =  p(c_k | x_t without this pixel) p(x_t of this pixel | c_k) / ...
                  proportional to  exp(f_k - (x_t - alpha c_k)^2 / (2 sigma^2)),

because the noise is independent across pixels. The second term is known, so the network outputs only f, L numbers per
pixel: the evidence of the other pixels. Then

    x_hat = sum over k of c_k p(c_k | x_t).

If the noise is smaller than the distance between grey levels, x_hat is a staircase in x_t, which a network that
predicts x, eps or v has to learn; here the stairs are built in, and a network with zero output, as at initialisation,
denoises each pixel separately and exactly (under a uniform prior over grey levels). Categorical outputs whose mean is
x_hat, for diffusion on embeddings, are from Dieleman et al. 2022 (arXiv 2211.15089, "score interpolation"); the factor
of the pixel itself is the decoder p(x | z_0) of Kingma et al. 2021 (arXiv 2107.00630), applied at every noise level.

The log-odds take L times the memory of an image, several times over in training: negligible for 17 grey levels of 8x8,
but 3 MB per image and copy for 256 grey levels of 3x32x32; use a small batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ..networks.parts import Part
from ..schedules import Schedule
from .denoiser import NetworkDenoiser
from .predictions import PathPoint


class LevelDenoiser(NetworkDenoiser):
    """E[x | x_t] of data with given discrete values, from a network's log-odds of these values.

    Args:
        network: As `NetworkDenoiser`, but maps to (B, L * C, *spatial), with the L log-odds of each channel adjacent.
        schedule: The path.
        places: The L values, increasing, shape (L,).
        shape: The shape (C, *spatial) of one sample.
        sigma_data, num_classes, size_multiple, parts: As `NetworkDenoiser`.

    Raises:
        UserError: For fewer than two values.
    """

    places: Tensor

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        places: Float[Tensor, " l"],
        shape: tuple[int, ...],
        sigma_data: float = 1.0,
        num_classes: int = 0,
        size_multiple: int | None = None,
        parts: Sequence[Part] = (),
    ):
        super().__init__(network, schedule, "x", shape, sigma_data, num_classes, size_multiple, parts)
        self.parameterization = "levels"
        if len(places) < 2:
            raise UserError(f"places: found {len(places)}; at least two levels are needed")
        self.register_buffer("places", places.to(torch.float64), persistent=False)

    def _output_shape(self, x_t: Tensor) -> tuple[int, ...]:
        return (len(x_t), len(self.places) * x_t.shape[1], *x_t.shape[2:])

    def log_odds(self, raw: Float[Tensor, " b lc *spatial"], x_t: Tensor, at: PathPoint) -> Tensor:
        """log p(c_k | x_t) up to a constant per pixel, shape (B, C, L, *spatial), from the network's output."""
        alpha, sigma = (value if isinstance(value, float) else value.unsqueeze(2) for value in (at.alpha, at.sigma))
        places = self.places.to(x_t.dtype).reshape(-1, *(1,) * (x_t.ndim - 2))
        # The square of the residual, not its expansion, which cancels at small noise. No division by alpha, which goes
        # to zero on some paths.
        residual = (x_t.unsqueeze(2) - alpha * places) / sigma
        return raw.unflatten(1, (x_t.shape[1], len(self.places))) - 0.5 * residual.square()

    def raw_to_x(self, raw: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
        """x_hat from the network's output."""
        odds = torch.softmax(self.log_odds(raw, x_t, at), dim=2)
        with torch.autocast(x_t.device.type, enabled=False):  # bf16 would round x_hat to 8 bits, far above its noise
            return torch.einsum("bcl...,l->bc...", odds, self.places.to(x_t.dtype))

    def x_to_raw(self, x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
        """Undefined: several log-odds have the same mean."""
        raise NotImplementedError("the log-odds of levels do not follow from their mean")
