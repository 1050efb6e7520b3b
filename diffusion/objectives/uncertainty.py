"""A weighting that is learned: each noise level is weighted by the error that is left there.

    loss = exp(-u(lambda)) e + u(lambda),    e = ||eps - eps_hat||^2 / D

with u a function of log-SNR that is trained along (Karras et al. 2024, arXiv 2312.02696, sec. 2.2 and app. B.5; after
Kendall, Gal and Cipolla 2018, arXiv 1705.07115). For any distribution of times the optimum is

    u(lambda) = log E[e | lambda],

so that all levels count alike, as much as they are drawn: the distribution of times is part of this weighting. Another
error, that of x_hat, is e times a function of lambda, whose logarithm is added to u; nothing else changes but the
start: u = 0 suits errors that are about 1 in an untrained network, and of one that predicts x that is the error of x.

Of data N(m, c^2) and an exact denoiser E[e | lambda] = alpha^2 c^2 / (alpha^2 c^2 + sigma^2), so u is
log sigmoid(lambda + log c^2).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..networks.embeddings import FourierEmbedding

FEATURES = 128
# log-SNR / 4, about in [-5, 5], is what networks take; the frequencies there are N(0, 1)
_SCALE = 0.25


class Uncertainty(nn.Module):
    """u(lambda), linear in random Fourier features of lambda; 0 to begin with. Discarded after training.

    Args:
        of_x: Whether e is the error of x_hat, exp(-lambda) that of eps_hat, for networks that predict x.
    """

    def __init__(self, of_x: bool = False) -> None:
        super().__init__()
        self.of_x = of_x
        self.features = FourierEmbedding(FEATURES, 1.0)
        self.linear = nn.Linear(FEATURES, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """u at log-SNR (B,), in the precision of its weights whatever the network's."""
        with torch.autocast(log_snr.device.type, enabled=False):
            features = self.features((_SCALE * log_snr).to(self.linear.weight))
            return self.linear(features)[:, 0].to(log_snr.device)

    def loss(self, log_snr: Float[Tensor, " b"], error: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """exp(-u) e + u of errors of eps (B,)."""
        u = self(log_snr).to(error.dtype)
        error = error * torch.exp(-log_snr).to(error.dtype) if self.of_x else error
        return torch.exp(-u) * error + u
