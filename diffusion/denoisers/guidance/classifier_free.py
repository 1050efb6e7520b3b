"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ..denoiser import Denoiser


class ClassifierFree(Denoiser):
    """x_hat = x_hat(x_t) + w (x_hat(x_t | label) - x_hat(x_t)): w = 1 is the conditional model, w = 0 no condition.

    The score is then that of p(x_t) (p(x_t | label) / p(x_t))^w (eq. 6 of the paper with w there one less). Both
    answers come from one call of the denoiser with a doubled batch, which counts as two evaluations.

    Args:
        denoiser: A class-conditional denoiser whose labels were dropped in training.
        weight: The guidance weight w.

    Raises:
        UserError: For a denoiser without classes.
    """

    def __init__(self, denoiser: Denoiser, weight: float):
        super().__init__()
        if not denoiser.num_classes:
            raise UserError("guidance: the model was trained without labels; leave it at 1")
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.shape = denoiser.shape
        self.num_classes = denoiser.num_classes
        self.weight = weight

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Tensor | None = None
    ) -> Float[Tensor, " b *dims"]:
        """Return the guided x_hat; `cond` are the labels to steer to. Arguments as `Denoiser.forward`."""
        if cond is None:
            raise UserError("guidance: steers towards a class; give a label too")
        both = torch.cat((cond, torch.full_like(cond, self.num_classes)))
        times = t if t.ndim == 0 else torch.cat((t, t))
        conditional, free = self.denoiser(torch.cat((x_t, x_t)), times, both).chunk(2)
        return torch.lerp(free, conditional, self.weight)
