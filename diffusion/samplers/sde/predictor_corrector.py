"""Predictor-corrector sampling (Song et al. 2021, arXiv 2011.13456, alg. 1, 4 and 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UserError, check_at_least_one
from ...numerics.broadcasting import pad_dims_like
from ...schedules import Schedule
from ..sampler import RowSampler, remembered
from .stochasticity import EtaSampler


@dataclass(frozen=True)
class PredictorCorrector(EtaSampler, RowSampler):
    """An exponential step of the reverse SDE, then Langevin steps at the time reached.

    With g = score(x_s) = -eps_hat / sigma and the signal-to-noise ratio r, a Langevin step is (alg. 4)

        x <- x + e g + sqrt(2 e) z,    e = 2 (r |z| / |g|)^2

    with |z| at its root mean square, sqrt(D), and the norm of g per sample, not its batch mean. The formula holds on
    every path: scaling x by c scales e by c^2 (the alpha_i of alg. 5, within 2 % of 1, is omitted). e is capped at
    sigma^2, the inverse of the score's largest slope, so that the step contracts even where g is small.

    A Langevin step of fixed length moves the law towards that of the path, but its stationary law is wider by r^2 of
    the variance: with more grid steps the law converges to that, not to the path's. Fewer corrector steps or a smaller
    r reduce the bias; `order` is that of the predictor.

    Args:
        eta: The stochasticity of the predictor; 1 is the paper's (reverse diffusion, ancestral sampling).
        snr: The signal-to-noise ratio r (paper: 0.16 on VE, 0.01 to 0.2 tried).
        corrections: Langevin steps at each time.
    """

    snr: float = 0.16
    corrections: int = 1
    order: ClassVar[int] = 1
    is_stochastic: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.snr < math.inf:
            raise UserError(f"snr: found {self.snr}; must be positive, e.g. 0.16")
        check_at_least_one(corrections=self.corrections)

    @property
    def evaluations_per_step(self) -> int:
        return 1 + self.corrections

    def noise_along(self, noise, schedule, grid):
        return noise  # the corrector's noise belongs to no path

    def rows(self, schedule: Schedule, times: Tensor) -> list[tuple[Tensor, Tensor, float, float, float, float, float]]:
        """(t, s), s again as a number, the factors of x_t, x_hat and the noise, and sigma at s, of each step."""
        t, s = times[:-1], times[1:]
        steps, (alpha, sigma) = self.linear_part(schedule, t, s), schedule(s)
        numbers = (v.tolist() for v in (s, steps.keep, -alpha * torch.expm1(-steps.decay), steps.fresh, sigma))
        return list(zip(t.unbind(), s.unbind(), *numbers, strict=True))

    def integrate(self, denoiser, x, times, noise, cond, callback):
        assert noise is not None  # `sample` has seen to it
        draws = 1 + self.corrections
        for step, (t, s, reached, a, b, c, sigma_s) in enumerate(remembered(self, denoiser.schedule, times)):
            x_hat = denoiser(x, t, cond)
            x = torch.add(a * x, x_hat, alpha=b)
            if c != 0.0:
                x = x.add_(noise(draws * step), alpha=c)
            for correction in range(1, draws):
                eps_hat = denoiser.eps(x, s, cond)
                power = eps_hat.reshape(len(x), -1).square().mean(1)
                e = (2.0 * self.snr**2 / power.clamp(min=1e-12)).clamp(max=1.0)  # in units of sigma^2
                drift, noisy = (pad_dims_like(sigma_s * value, x) for value in (-e, torch.sqrt(2.0 * e)))
                x = torch.addcmul(x, drift, eps_hat).addcmul_(noisy, noise(draws * step + correction))
            if callback is not None:
                callback(step, reached, x, x_hat)
        return x
