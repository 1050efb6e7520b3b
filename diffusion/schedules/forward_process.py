"""The forward process and Bayes' rule on it: q(x_t | x), q(x_t | x_s) and q(x_s | x_t, x) for s < t.

All are Gaussian. With the log-SNR lambda and r = exp(lambda_t - lambda_s) in (0, 1):

    q(x_t | x)      = N(alpha_t x, sigma_t^2 I)
    q(x_t | x_s)    = N((alpha_t / alpha_s) x_s, sigma_t^2 (1 - r) I)
    q(x_s | x_t, x) = N( (alpha_s / alpha_t) r x_t + alpha_s (1 - r) x,   sigma_s^2 (1 - r) I )

which is Ho et al. 2020 (arXiv 2006.11239), eq. 6-7, for any path (Kingma et al. 2021, arXiv 2107.00630, app. A).
Ancestral sampling, DDIM and the ELBO all use it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.broadcasting import pad_dims_like
from .schedule import Schedule


def diffuse(schedule: Schedule, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """A draw of q(x_t | x): alpha_t x + sigma_t eps, with t of shape () or (B,)."""
    alpha, sigma = (pad_dims_like(value, x).to(x.dtype) for value in schedule(t))
    return alpha * x + sigma * eps


def transition(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of x_s in the mean of q(x_t | x_s), and its variance, for s < t of equal shape."""
    factor = torch.exp(schedule.log_alpha(t) - schedule.log_alpha(s))
    return factor, -(schedule(t)[1] ** 2) * torch.expm1(schedule.log_snr(t) - schedule.log_snr(s))


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x) = N(from_x_t x_t + from_x x, variance I), coefficients of the shape of the times."""

    from_x_t: Tensor
    from_x: Tensor
    variance: Tensor


def posterior(schedule: Schedule, t: Tensor, s: Tensor) -> Posterior:
    """Bayes' rule on the path: the law of x_s given x_t and x, for s < t of equal shape."""
    log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(s)
    alpha_s, sigma_s = schedule(s)
    rise = log_snr_t - log_snr_s  # log r, negative
    return Posterior(
        from_x_t=torch.exp(schedule.log_alpha(s) - schedule.log_alpha(t) + rise),
        from_x=-alpha_s * torch.expm1(rise),
        variance=-(sigma_s**2) * torch.expm1(rise),
    )


def variance_for_unit_data(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The variance of x_s given x_t alone for data N(0, I): DDPM's upper choice, beta on a variance-preserving path.

    With v = alpha^2 + sigma^2 it is v_s (1 - v_s alpha_t^2 / (v_t alpha_s^2)) (Ho et al. 2020, sec. 3.2).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    v_t, v_s = alpha_t**2 + sigma_t**2, alpha_s**2 + sigma_s**2
    return v_s * transition(schedule, s, t)[1] / v_t
