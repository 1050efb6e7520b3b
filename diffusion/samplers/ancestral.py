"""Ancestral sampling: DDPM as Bayes' rule on the path (Ho et al. 2020, arXiv 2006.11239).

A step draws from q(x_s | x_t, x) with x_hat = E[x | x_t] in place of x. The variance of p(x_s | x_t) is not known
exactly. It is at least the posterior variance (`lower`: exact if x is known). Its value for data N(0, I) (`upper`:
beta_t on a variance-preserving path) bounds its mean over x_t and coordinates for data whose coordinates have a
variance of at most 1 (sec. 3.2 of the paper); at a single x_t, and for wider data, it can be larger. The optimal single
number follows from the mean square of the denoiser's output (`analytic`: see `Moments`). A network may also say it for
each pixel, between the first two (`learned`: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser, device_of
from ..denoisers.evaluations import evaluation_mode
from ..errors import UserError, choose
from ..numerics.random import STREAM_EVALUATE, normal
from ..schedules import Schedule
from ..schedules.forward_process import diffuse, posterior, variance_for_unit_data
from ..schedules.schedule import log_snr_ends
from .sampler import Coefficients, LinearSampler, WithSteps, check_fields, remembered

_SPACING = 1.0  # of the noise levels, in log-SNR
_LEAST = 1e-12  # a moment's distance from 0 and 1


@dataclass(frozen=True)
class Moments:
    """E||eps_hat||^2 / D at some log-SNRs.

    Args:
        log_snrs: The log-SNRs, increasing, two or more.
        values: The moment at each.
        error_bound: An upper bound of E||x - x_hat||^2 / D: (b - a)^2 / 4 for data in [a, b] (theorem 2).

    Raises:
        UserError: For log-SNRs that do not increase, or another number of values.
    """

    log_snrs: tuple[float, ...]
    values: tuple[float, ...]
    error_bound: float = math.inf

    def __post_init__(self):
        levels = self.log_snrs
        if len(levels) < 2 or len(levels) != len(self.values) or sorted(set(levels)) != list(levels):
            raise UserError(f"moments: found {len(self.values)} values at {levels}; needs two or more rising log-SNRs")

    def at(self, log_snr: Tensor) -> Tensor:
        """The moment at these log-SNRs, extrapolated linearly beyond the ends."""
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
    """Estimate the moments of a denoiser at unit steps of log-SNR, from one end of its path to the other.

    Args:
        denoiser: The denoiser; it is evaluated without labels.
        x: Data, or samples of the model, shape (N, *shape); a few dozen images suffice.
        error_bound: As `Moments`; 1 for data in [-1, 1].
        seed: The seed of the added noise.
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


LEARNED = "learned"
VARIANCES = ("lower", "upper", "analytic", LEARNED)


@dataclass(frozen=True)
class Ancestral(WithSteps, LinearSampler):
    """x_s ~ q(x_s | x_t, x_hat).

    Args:
        variance: `lower` (the posterior variance), `upper` (the variance for data N(0, I)) or `analytic` (the optimal
            one; exact, at any number of steps, for data N(m, c^2 I), but not if directions have different variances),
            or `learned` (between the first two, where a network that predicts it says: `Denoiser.with_variance`).
        moments: Required by `analytic` (`estimate_moments`); a trained model estimates its own.
    """

    variance: str = "lower"
    moments: Moments | None = None
    is_stochastic: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self)
        choose("variance", self.variance, VARIANCES)
        if self.moments is not None and self.variance != "analytic":
            raise UserError(f"moments: given with variance '{self.variance}'; only 'analytic' takes them")

    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        q = posterior(schedule, t, s)
        if self.variance == "upper":
            variance = variance_for_unit_data(schedule, t, s)
        elif self.variance in ("lower", LEARNED):
            variance = q.variance
        elif self.moments is None:
            raise UserError("moments: variance 'analytic' needs those of the denoiser (samplers.estimate_moments)")
        else:
            variance = q.variance + q.from_x**2 * self.moments.denoising_error(schedule, t)
        return Coefficients(q.from_x_t, q.from_x, torch.sqrt(variance))

    def integrate(self, denoiser, x, times, noise, cond, callback):
        if self.variance != LEARNED:
            return super().integrate(denoiser, x, times, noise, cond, callback)
        assert noise is not None  # `sample` has seen to it
        above = variance_for_unit_data(denoiser.schedule, times[:-1], times[1:]).sqrt().log().tolist()
        for step, (t, s, a, b, c) in enumerate(remembered(self, denoiser.schedule, times)):
            x_hat, place = denoiser.with_variance(x, t, cond)
            low = math.log(c)
            x = torch.add(a * x, x_hat, alpha=b).addcmul_(noise(step), torch.exp(low + (above[step] - low) * place))
            if callback is not None:
                callback(step, s, x, x_hat)
        return x
