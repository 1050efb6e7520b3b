"""A denoiser that knows that its data are levels: the network predicts what is likely, Bayes' rule adds what is seen.

A pixel of a discrete image is one of L places c_1 .. c_L. Given x_t it is at c_k with the probability

    p(c_k | x_t)  =  p(c_k | x_t without this pixel) p(x_t of this pixel | c_k) / ...
                  proportional to  exp(f_k - (x_t - alpha c_k)^2 / (2 sigma^2)),

because the noise is independent from pixel to pixel. The second term is known, so the network puts out f alone, L
numbers a pixel: what the other pixels say. Then

    x_hat = sum over k of c_k p(c_k | x_t).

Where the noise is narrower than the distance of two levels, x_hat is a staircase in x_t, which a network that predicts
x, eps or v has to learn from its input; here the stairs are built in, and a network that puts out zeros, as it does at
its start, denoises each pixel by itself exactly (under a uniform prior over the levels). Categorical outputs for
diffusion in a space of embeddings, whose mean is x_hat, are of Dieleman et al. 2022 (arXiv 2211.15089, "score
interpolation"); the factor of the pixel itself is the decoder p(x | z_0) of Kingma et al. 2021 (arXiv 2107.00630),
taken at every noise level.

The log-odds take L times the memory of an image, a few times over in training: 17 levels of 8x8 are nothing, 256 levels
of 3x32x32 are 3 MB an image for each copy. They are allowed; take a small batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ..schedules import Schedule
from .denoiser import NetworkDenoiser
from .predictions import PathPoint


class LevelDenoiser(NetworkDenoiser):
    """E[x | x_t] of data that stand at given places, from a network's log-odds of the places.

    Args:
        network: As `NetworkDenoiser`, but maps to (B, L * C, *spatial), for each channel its L log-odds in a row.
        schedule: The path.
        places: The L places, increasing, shape (L,).
        shape: The shape (C, *spatial) of one datum.
        sigma_data, num_classes, size_multiple: As `NetworkDenoiser`.

    Raises:
        UserError: For fewer than two places.
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
    ):
        super().__init__(network, schedule, "x", shape, sigma_data, num_classes, size_multiple)
        self.parameterization = "levels"
        if len(places) < 2:
            raise UserError(f"places: found {len(places)}; at least two levels are needed")
        self.register_buffer("places", places.to(torch.float64), persistent=False)

    def _output_shape(self, x_t: Tensor) -> tuple[int, ...]:
        return (len(x_t), len(self.places) * x_t.shape[1], *x_t.shape[2:])

    def log_odds(self, raw: Float[Tensor, " b lc *spatial"], x_t: Tensor, at: PathPoint) -> Tensor:
        """log p(c_k | x_t) up to a constant of each pixel, shape (B, C, L, *spatial), from the network's output."""
        alpha, sigma = (value if isinstance(value, float) else value.unsqueeze(2) for value in (at.alpha, at.sigma))
        places = self.places.to(x_t.dtype).reshape(-1, *(1,) * (x_t.ndim - 2))
        # The square of the residual, not its expansion: that cancels where the noise is small. No division by alpha,
        # which some paths let go to zero.
        residual = (x_t.unsqueeze(2) - alpha * places) / sigma
        return raw.unflatten(1, (x_t.shape[1], len(self.places))) - 0.5 * residual.square()

    def raw_to_x(self, raw: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
        """x_hat from the network's output."""
        odds = torch.softmax(self.log_odds(raw, x_t, at), dim=2)
        return torch.einsum("bcl...,l->bc...", odds, self.places.to(x_t.dtype))

    def x_to_raw(self, x: Tensor, x_t: Tensor, at: PathPoint) -> Tensor:
        """Not to be told: several log-odds have the same mean."""
        raise NotImplementedError("the log-odds of levels do not follow from their mean")
