"""Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233; Song et al. 2021, arXiv 2011.13456, app. I)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...broadcasting import pad_dims_like
from ...errors import UserError
from ..denoiser import Denoiser


class ClassifierGuided(Denoiser):
    """x_hat = x_hat(x_t) + w (sigma^2 / alpha) grad log p(label | x_t): Bayes' rule for the score, p(label | x_t)^w.

    With the exact classifier of noisy data w = 1 gives the exact conditional denoiser E[x | x_t, label].

    Args:
        denoiser: Asked without a label.
        classifier: Maps (x_t (B, *shape), t () or (B,)) to logits (B, num_classes), differentiable in x_t.
        num_classes: The number of classes.
        weight: The guidance weight w; 0 leaves the denoiser as it is, without a call of the classifier.
    """

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, num_classes: int, weight: float = 1.0):
        super().__init__()
        self.denoiser = denoiser
        self.classifier = classifier
        self.schedule = denoiser.schedule
        self.shape = denoiser.shape
        self.num_classes = num_classes
        self.weight = weight

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Tensor | None = None
    ) -> Float[Tensor, " b *dims"]:
        """Return the guided x_hat; `cond` are the labels to steer to, None for none. Arguments as `Denoiser.forward`.

        Raises:
            UserError: For a classifier whose answer is not of shape (B, num_classes).
        """
        x_hat = self.denoiser(x_t, t)
        if cond is None or self.weight == 0.0:
            return x_hat
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            logits = self.classifier(x, t)
            if logits.shape != (len(x), self.num_classes):
                raise UserError(f"classifier: answers {tuple(logits.shape)}; needs {(len(x), self.num_classes)}")
            log_prob = logits.log_softmax(1).gather(1, cond[:, None]).sum()
        gradient = torch.autograd.grad(log_prob, x)[0]
        alpha, sigma = (pad_dims_like(value, x_t).to(x_t) for value in self.schedule(t))
        return x_hat + self.weight * sigma.square() / alpha * gradient
