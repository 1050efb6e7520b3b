"""The optimal variance of ancestral sampling (Analytic-DPM: Bao et al. 2022, arXiv 2201.06503).

Among the Gaussians p(x_s | x_t) = N(mean by x_hat, v I) the one nearest to the truth has (theorem 1)

    v = posterior variance + from_x^2 E||x - x_hat||^2 / D,    E||x - x_hat||^2 / D = (sigma_t / alpha_t)^2 (1 - moment)

where from_x is the weight of x in the mean of q(x_s | x_t, x), and the moment, E||eps_hat||^2 / D, is one number a
noise level: estimated once from data, or from a model's own samples. It grows from 0 at the data to 1 in the noise; its
logit is interpolated over log-SNR, which is exact for data N(m, c^2 I): there it is a line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser, device_of
from ..errors import UserError
from ..evaluations import evaluation_mode
from ..random import STREAM_EVALUATE, normal
from ..schedules import Schedule
from ..schedules.forward_process import diffuse
from ..schedules.schedule import log_snr_ends

_SPACING = 1.0  # of the levels, in log-SNR
_LEAST = 1e-12  # a moment's distance from 0 and 1


@dataclass(frozen=True)
class Moments:
    """E||eps_hat||^2 / D at some log-SNRs.

    Args:
        log_snrs: The levels, increasing, two or more.
        values: The moment at each.
        error_bound: What E||x - x_hat||^2 / D cannot exceed: (b - a)^2 / 4 for data in [a, b] (theorem 2).

    Raises:
        UserError: For levels that do not increase, or another number of values.
    """

    log_snrs: tuple[float, ...]
    values: tuple[float, ...]
    error_bound: float = math.inf

    def __post_init__(self):
        levels = self.log_snrs
        if len(levels) < 2 or len(levels) != len(self.values) or sorted(set(levels)) != list(levels):
            raise UserError(f"moments: found {len(self.values)} values at {levels}; needs two or more rising log-SNRs")

    def at(self, log_snr: Tensor) -> Tensor:
        """The moment at these log-SNRs, beyond the ends along the outermost line."""
        x, y = (torch.tensor(values, dtype=log_snr.dtype) for values in (self.log_snrs, self.values))
        y = torch.logit(y.clamp(_LEAST, 1.0 - _LEAST))
        i = torch.searchsorted(x, log_snr.contiguous()).clamp(1, len(x) - 1)
        share = (log_snr - x[i - 1]) / (x[i] - x[i - 1])
        return torch.sigmoid(torch.lerp(y[i - 1], y[i], share))

    def denoising_error(self, schedule: Schedule, t: Tensor) -> Tensor:
        """E||x - x_hat||^2 / D at the times `t`, at most the bound; never negative, and below (sigma / alpha)^2."""
        log_snr = schedule.log_snr(t)
        return (torch.exp(-log_snr) * (1.0 - self.at(log_snr))).clamp(max=self.error_bound)


@torch.no_grad()
def estimate_moments(
    denoiser: Denoiser,
    x: Float[Tensor, " n *dims"],
    error_bound: float = math.inf,
    seed: int = 0,
    batch_size: int = 256,
) -> Moments:
    """Estimate the moments of a denoiser at levels one apart in log-SNR, from one end of its path to the other.

    Args:
        denoiser: The denoiser; it is asked without labels.
        x: Data, or samples of the model, shape (N, *shape); of images a few dozen do.
        error_bound: As `Moments`; 1 for data in [-1, 1].
        seed: Of the noise added.
        batch_size: Rows evaluated at once.
    """
    low, high = log_snr_ends(denoiser.schedule)
    levels = torch.linspace(low, high, max(2, 1 + round((high - low) / _SPACING)), dtype=torch.float64)
    x = x.to(device_of(denoiser))
    values = []
    with evaluation_mode(denoiser):
        for step, t in enumerate(denoiser.schedule.inverse_log_snr(levels)):
            total = 0.0
            for rows in torch.arange(len(x)).split(batch_size):
                eps = normal(seed, rows, step, denoiser.shape, STREAM_EVALUATE, x.dtype, x.device)
                x_t = diffuse(denoiser.schedule, x[rows.to(x.device)], t, eps)
                total += float(denoiser.eps(x_t, t).double().square().sum())
            values.append(total / x.numel())
    return Moments(tuple(levels.tolist()), tuple(values), error_bound)
