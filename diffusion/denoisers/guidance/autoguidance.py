"""Autoguidance (Karras et al. 2024, arXiv 2406.02507): a model guided by a worse version of itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import UserError
from ..condition import Condition
from ..denoiser import Retimed, denoiser_of
from .guided import ALWAYS, Guided


class Autoguidance(Guided):
    """x_hat = x_hat_guide + w (x_hat - x_hat_guide), with a guide that makes similar but larger errors (eq. 4).

    The score is that of p (p / p_guide)^(w - 1): away from where the guide puts mass and the model does not. No labels
    are needed. A guide without classes is evaluated without the label: with the unconditional model as the guide this
    is classifier-free guidance.

    Args:
        denoiser: The model.
        guide: A worse one: an earlier checkpoint, a smaller network. If its path differs, it is matched by log-SNR.
        weight: The guidance weight w.
        interval: The noise levels at which it acts.

    Raises:
        UserError: For a guide with another shape or other classes.
    """

    def __init__(self, denoiser: Any, guide: Any, weight: Any, interval: Any = ALWAYS):
        super().__init__(denoiser, weight, interval)
        guide = denoiser_of("guide", guide)
        if guide.shape != self.shape:
            raise UserError(f"guide: is for data of shape {guide.shape}; the model's are {self.shape}")
        if guide.num_classes not in (0, self.num_classes):
            raise UserError(f"guide: has {guide.num_classes} classes; the model has {self.num_classes}")
        self.guide = guide if guide.schedule == self.schedule else Retimed(guide, self.schedule)

    def pair(self, x_t: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        of_guide = cond if self.guide.num_classes or isinstance(cond, Condition) else None
        return self.denoiser(x_t, t, cond), self.guide(x_t, t, of_guide)
