"""Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..given import positive_number
from .posterior import Covariance, Posterior


class DPS(Posterior):
    """V = 0, p(y | x_t) = p(y | x_hat) (theorem 1), with the authors' kind of step size instead of 1 / s^2.

        x_hat' = x_hat - scale (sigma^2 / alpha) grad ||y - A x_hat||^2 / (2 r^2)
        r^2 = max(s^2, ||y - A x_hat||^2 / M)

    for M observed numbers. 1 / s^2 itself overshoots where x_hat is less certain than y. The paper (sec. 3.3, alg. 1)
    divides by the norm of the residual, once per step of a 1,000-step chain, a strength that depends on the number of
    steps; here its mean square approximates the variance of y given x_t, so one denoiser works with every sampler.

    The score is biased for any data and number of steps; `MomentMatching` costs a little more and is not.

    Args:
        denoiser, observation: As `Posterior`.
        scale: The strength zeta, positive.

    Raises:
        UserError: For a scale that is not positive.
    """

    def __init__(self, denoiser: Any, observation: Any, scale: Any = 1.0):
        super().__init__(denoiser, observation)
        self.scale = positive_number("scale", scale)

    def solve(self, residual: Tensor, covariance: Covariance, alpha: Tensor, sigma: Tensor) -> Tensor:
        square = residual.flatten(1).square().mean(1).clamp(min=self.observation.noise_std**2)
        tiny = torch.finfo(square.dtype).tiny
        return self.scale * residual / square.clamp(min=tiny).reshape(-1, *(1,) * (residual.ndim - 1))
