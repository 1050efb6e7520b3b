"""Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233; Song et al. 2021, arXiv 2011.13456, app. I)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UserError
from ...numerics.arrays import whole_number
from ...numerics.broadcasting import pad_dims_like, per_row
from ...numerics.placement import Placed
from ...schedules import Schedule
from ..condition import labels_only
from ..denoiser import DenoiserWrapper
from ..given import outside_inference_mode, real_number
from ..network_call import dtype_of
from ..preconditioning import c_noise
from .guided import ALWAYS, Interval


class PathClassifier(Placed):
    """p(label | x_t) on the path of any schedule, from a network conditioned on log-SNR.

    The network receives x_t / sqrt(alpha^2 + sigma^2), so the same one works on every path.

    Args:
        network: Maps (x (B, *shape), c_noise (B,)) to logits (B, num_classes).
        schedule: The path.
    """

    def __init__(self, network: nn.Module, schedule: Schedule):
        super().__init__()
        self.network = network
        self.schedule = schedule

    def forward(self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"]) -> Float[Tensor, " b classes"]:
        """The logits; x_t (B, *shape), t () or (B,)."""
        dtype = dtype_of(self.network, x_t.dtype)
        scale = torch.hypot(*self.schedule(t)).reciprocal()
        level = per_row(c_noise(self.schedule.log_snr(t)).to(dtype), x_t)
        return self.network((pad_dims_like(scale, x_t).to(x_t.dtype) * x_t).to(dtype), level).to(x_t.dtype)


class ClassifierGuided(DenoiserWrapper):
    """x_hat = x_hat(x_t) + w (sigma^2 / alpha) grad log p(label | x_t): Bayes' rule for the score, p(label | x_t)^w.

    With the exact classifier of noisy data w = 1 gives the exact conditional denoiser E[x | x_t, label].

    Args:
        denoiser: Evaluated without a label.
        classifier: Maps (x_t (B, *shape), t () or (B,)) to logits (B, num_classes), differentiable in x_t.
        num_classes: The number of classes.
        weight: The guidance weight w; 0 is the plain denoiser, without a call of the classifier.
        interval: The noise levels at which it acts; elsewhere x_hat is the denoiser's.
    """

    def __init__(
        self,
        denoiser: Any,
        classifier: Any,
        num_classes: Any,
        weight: Any = 1.0,
        interval: Any = ALWAYS,
    ):
        super().__init__(denoiser)
        if not callable(classifier):
            raise UserError(f"classifier: found {classifier!r}; needs a module or a function of (x_t, t)")
        self.classifier: Any = classifier
        self.num_classes = whole_number("num_classes", num_classes, 1)
        self.weight = real_number("weight", weight)
        self.interval = Interval.of(interval)

    @outside_inference_mode
    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return the guided x_hat; `cond` holds the target labels, None or `num_classes` for none.

        Arguments as `Denoiser.forward`.

        Raises:
            UserError: For a classifier whose output is not of shape (B, num_classes).
        """
        cond = labels_only(cond)
        x_hat = self.denoiser(x_t, t)
        within = self.interval.holds(self.schedule, t)
        if cond is None or self.weight == 0.0 or not bool(within.any()):
            return x_hat
        alpha, sigma = self.schedule(t)
        weight = pad_dims_like(torch.where(within, self.weight * sigma.square() / alpha, 0.0), x_t).to(x_t.dtype)
        return x_hat + weight * self._gradient(x_t, t, cond)

    def _gradient(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """grad log p(label | x_t); itself differentiable if x_t requires grad (inverse problems, likelihoods)."""
        followed = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if followed else x_t.detach().requires_grad_()
            logits = self.classifier(x, t)
            if logits.shape != (len(x), self.num_classes):
                raise UserError(f"classifier: answers {tuple(logits.shape)}; needs {(len(x), self.num_classes)}")
            of_label = logits.log_softmax(1).gather(1, cond[:, None].clamp(max=self.num_classes - 1))[:, 0]
            log_prob = torch.where(cond < self.num_classes, of_label, 0.0).sum()
            return torch.autograd.grad(log_prob, x, create_graph=followed)[0]
