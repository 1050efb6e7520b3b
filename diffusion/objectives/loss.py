"""The one training loss: denoising error, weighed over log-SNR, estimated at random times.

    loss = w(lambda) / p(lambda) * ||eps - eps_hat||^2 / D,    lambda ~ p

is unbiased for the integral of w(lambda) E||eps - eps_hat||^2 / D whatever p (see `weightings`). The error of the noise
is exp(lambda / 2) times the error of the datum, so that the loss is the same for every prediction of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..schedules.forward_process import diffuse
from .time_sampling import TimeDistribution
from .weightings import Weighting


@dataclass(frozen=True)
class Losses:
    """The per-sample losses of a batch, each of shape (B,).

    Attributes:
        weighted: The training loss, w / p ||eps - eps_hat||^2 / D.
        eps_error: ||eps - eps_hat||^2 / D, unweighted.
        log_snr: The log-SNR at which each was measured.
    """

    weighted: Tensor
    eps_error: Tensor
    log_snr: Tensor


@dataclass(frozen=True)
class Objective:
    """A weighting and a distribution of times.

    Args:
        weighting: w(lambda), see `weightings.weighting`.
        times: The distribution of training times.
    """

    weighting: Weighting
    times: TimeDistribution

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, " b *dims"],
        u: Float[Tensor, " b"],
        eps: Float[Tensor, " b *dims"],
        cond: Tensor | None = None,
    ) -> Losses:
        """The losses of clean data x at the times of u with the noise eps.

        Args:
            denoiser: The denoiser in training.
            x: Clean data, shape (B, *shape).
            u: Uniforms in (0, 1) that choose the times, float64 (B,).
            eps: Standard normals of the shape of x.
            cond: Class labels, shape (B,), or None.
        """
        schedule = denoiser.schedule
        log_snr = self.times.log_snr(schedule, u)
        t = schedule.inverse_log_snr(log_snr)
        x_hat = denoiser(diffuse(schedule, x, t, eps), t, cond)
        datum_error = (x_hat - x).flatten(1).pow(2).mean(1)
        importance = self.weighting(log_snr) / self.times.density(schedule, log_snr)
        eps_error = torch.exp(log_snr) * datum_error
        return Losses((importance * eps_error).to(x.dtype), eps_error.detach().to(x.dtype), log_snr)
