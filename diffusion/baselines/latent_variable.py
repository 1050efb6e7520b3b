"""Shared by the estimators of latent-variable models: the model's contract and the loop over the data."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from ..likelihood.batching import Progress, check_finite, choose_batch_size, evaluation_mode
from ..likelihood.estimate import Estimate, mean_error


class LatentVariableModel(nn.Module, ABC):
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


def in_batches(
    model: LatentVariableModel,
    x: Tensor,
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]],
    protocol: dict[str, object],
    nfe: int,
    rows_an_image: int,
    batch_size: int | None,
    indices: Tensor | None,
    progress: Progress | None,
) -> Estimate:
    """Join the lower bounds `evaluate(x, indices) -> log_prob, std_error, terms` of batches of data.

    Args:
        model, x, indices, progress: As `importance_weighted`.
        evaluate: The estimator, for one batch.
        protocol: The estimator's part of the protocol; the model's is added.
        nfe: Decoder evaluations per image.
        rows_an_image: The number of latents per image decoded together, which divides the default batch size.
        batch_size: The number of images processed together, or None.

    Raises:
        UserError: For no image, a batch size below one, or a wrong number of indices.
    """
    if len(x) == 0:
        raise UserError("images: found none; needs at least one")
    if indices is not None and len(indices) != len(x):
        raise UserError(f"indices: found {len(indices)} for {len(x)} images; accepted: one each, or none at all")
    indices = torch.arange(len(x)) if indices is None else indices.cpu()
    dims, start, parts = x[0].numel(), time.perf_counter(), []
    batch_size = choose_batch_size(batch_size, dims * rows_an_image)
    with torch.no_grad(), evaluation_mode(model):
        for first in range(0, len(x), batch_size):
            rows = slice(first, min(first + batch_size, len(x)))
            log_prob, std_error, terms = evaluate(x[rows], indices[rows])
            check_finite(log_prob, rows.start, str(protocol.get("estimator", "log_prob")))
            parts.append(
                Estimate(
                    log_prob=log_prob,
                    dims=dims,
                    levels=model.levels,
                    std_error=std_error,
                    kind="lower bound",
                    protocol={**protocol, **model.protocol, "levels": model.levels},
                    indices=indices[rows],
                    nfe=float(nfe),
                    terms=terms,
                )
            )
            if progress is not None:
                progress(rows.stop, len(x))
    joined = Estimate.join(parts)
    joined = replace(joined, seconds=time.perf_counter() - start)
    return joined.with_error("samples", mean_error(joined.std_error, dims))
