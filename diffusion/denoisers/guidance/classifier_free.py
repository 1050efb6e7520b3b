"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ..condition import Condition, condition_for
from .guided import ALWAYS, Guided


class ClassifierFree(Guided):
    """x_hat = x_hat(x_t) + w (x_hat(x_t | label) - x_hat(x_t)): conditional at w = 1, unconditional at w = 0.

    The score is then that of p(x_t) (p(x_t | label) / p(x_t))^w (eq. 6 of the paper, whose w is one less). Both come
    from one call of the denoiser with a doubled batch, which counts as two evaluations.

    Args:
        denoiser: A class-conditional denoiser whose labels were dropped in training.
        weight: The guidance weight w.
        interval: The noise levels at which it acts; elsewhere x_hat = x_hat(x_t | label), by one evaluation.
        null: The null condition, one entry, for a network with a condition other than labels; a `cond` with its own
            (`Condition.null`) uses that.

    Raises:
        UserError: For a denoiser without classes, or a call without labels.
    """

    def __init__(self, denoiser: Any, weight: Any, interval: Any = ALWAYS, null: Any = None):
        super().__init__(denoiser, weight, interval)
        if not self.num_classes and not self.parts and null is None:
            raise UserError(
                "guidance: the model was trained without labels; leave it at 1, "
                "train it with denoiser.conditional=true, or let a classifier steer it (sample.py --classifier)"
            )
        self.null = null if null is None or isinstance(null, Condition) else condition_for("null", null, 1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Return the guided x_hat; `cond` holds the target labels. Arguments as `Denoiser.forward`."""
        if cond is None:
            raise UserError("guidance: steers towards a class; give a label too")
        return super().forward(x_t, t, cond)

    def pair(self, x_t: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        if isinstance(cond, Condition):
            if cond.null is None and self.null is None:
                raise UserError("null: guidance leads away from no condition; ClassifierFree takes one as null=")
            own = cond if cond.null is not None or self.null is None else cond.led_from(self.null)
            assert own.null is not None
            both = own.then(own.null)
        else:
            both = torch.cat((cond, torch.full_like(cond, self.num_classes)))
        times = t if t.ndim == 0 else torch.cat((t, t))
        conditional, free = self.denoiser(torch.cat((x_t, x_t)), times, both).chunk(2)
        return conditional, free
