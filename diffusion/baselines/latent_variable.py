"""Shared by the estimators of latent-variable models: the model's contract and the loop over the data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..likelihood.batching import Batch, Batches, Values, in_batches
from ..likelihood.estimate import Estimate, mean_error
from ..numerics.placement import Placed


class LatentVariableModel(Placed, ABC):
    """A model p(x) = E_{z ~ N(0, I)} p(x | z) of data x, with a Gaussian proposal for z given x.

    latent_dim is the length d of z; levels the number of levels per dimension of x, None for continuous data.
    """

    latent_dim: int
    levels: int | None

    @abstractmethod
    def proposal(self, x: Tensor) -> tuple[Float[Tensor, " b d"], Float[Tensor, " b d"]]:
        """Mean and standard deviation of q(z | x), each (B, d)."""

    @abstractmethod
    def log_prob_given(self, x: Tensor, z: Float[Tensor, " b d"]) -> Float[Tensor, " b"]:
        """log p(x | z) in nats, shape (B,); differentiable in z."""

    @abstractmethod
    def draw_given(self, z: Float[Tensor, " b d"], seed: int, indices: Int[Tensor, " b"]) -> Tensor:
        """Draw x from p(x | z); row i depends on z[i], the seed and indices[i]."""

    @property
    @abstractmethod
    def protocol(self) -> dict[str, object]:
        """The model's part of a figure's protocol, as plain values."""

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the parameters (or the buffers, if there are none), in which z is drawn."""
        return next(t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())


def lower_bound(
    model: LatentVariableModel,
    x: Tensor,
    batches: Batches,
    evaluate: Callable[[Batch], Values],
    protocol: dict[str, object],
    nfe: int,
    rows_per_image: int,
) -> Estimate:
    """Join the lower bounds of all batches.

    Args:
        model, x, batches: The model, the data and how they are taken.
        evaluate: The log-probabilities of a batch, their errors and their terms.
        protocol: The estimator's part of the protocol; the model's and the seed are added.
        nfe: Decoder evaluations per image.
        rows_per_image: The number of latents per image decoded together, which divides the default batch size.

    Raises:
        UserError: As `batching.in_batches`; for labels, which these models do not have.
    """
    if batches.cond is not None:
        raise UserError("cond: a latent-variable model has no labels; leave it out")
    protocol = {**protocol, "seed": batches.seed, **model.protocol, "levels": model.levels}
    size = batches.size(math.prod(x.shape[1:]) * rows_per_image)
    found = in_batches(model, x, batches, evaluate, "lower bound", protocol, model.levels, size, float(nfe))
    return found.with_error("samples", mean_error(found.std_error, found.dims))
