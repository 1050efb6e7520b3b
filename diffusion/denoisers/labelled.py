"""An exact class-conditional denoiser: the ground truth for guidance.

If class k has the probability w_k and the law p_k, then p(x_t) = sum_k w_k p_k(x_t), and Bayes' rule

    p(k | x_t) = w_k p_k(x_t) / p(x_t),        E[x | x_t] = sum_k p(k | x_t) E[x | x_t, k]

gives the classifier of noisy data and the denoiser without a label from the denoisers of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .condition import labels_only
from .denoiser import Denoiser
from .exact import Exact


class Labelled(Denoiser):
    """Classes of exact laws: with labels the denoisers of the classes, without (None or K) that of all data.

    Args:
        classes: K denoisers of one path and one shape.
        weights: Their probabilities, shape (K,), divided by their sum; equal by default.

    Raises:
        UserError: For classes that do not agree, or weights that are not K positive numbers.
    """

    log_weights: Tensor

    def __init__(self, classes: Sequence[Exact], weights: Tensor | None = None):
        super().__init__()
        self._laws = tuple(classes)
        self.classes = nn.ModuleList(classes)  # moved by `.to()`, and seen by those who count evaluations
        first = classes[0]
        if any(one.shape != first.shape or one.schedule != first.schedule for one in classes):
            raise UserError("classes: must have one shape and one schedule")
        weights = torch.ones(len(classes), dtype=torch.float64) if weights is None else weights
        if weights.shape != (len(classes),) or not bool((weights > 0).all()):
            raise UserError(f"weights: found {weights.tolist()}; needs {len(classes)} positive numbers")
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.schedule, self.shape, self.num_classes = first.schedule, first.shape, len(classes)

    def log_class_prob(self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"]) -> Float[Tensor, " b k"]:
        """log p(k | x_t) of every class: the exact classifier of noisy data."""
        joint = torch.stack([one.log_prob_at(x_t, t) for one in self._laws], 1) + self.log_weights.to(x_t)
        return joint.log_softmax(1)

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return x_hat. Arguments as `Denoiser.forward`."""
        cond = labels_only(cond)
        answers = torch.stack([one(x_t, t) for one in self._laws], 1)
        shares = self.log_class_prob(x_t, t).exp()
        if cond is not None:
            of_class = torch.nn.functional.one_hot(cond, self.num_classes + 1)[:, :-1].to(shares)
            shares = torch.where((cond == self.num_classes)[:, None], shares, of_class)
        return (shares.reshape(*shares.shape, *(1,) * len(self.shape)) * answers).sum(1)
