"""Pseudo-inverse guidance, "Pi-GDM" (Song, Vahdat, Mardani, Kautz 2023, ICLR: openreview 9_gsMA8MRKQ)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..given import positive_number
from .posterior import Covariance, Posterior


class PseudoInverse(Posterior):
    """V = r_t^2 I, the covariance of x given x_t for data N(mean, data_std^2 I).

        r_t^2 = data_std^2 sigma^2 / (alpha^2 data_std^2 + sigma^2)
        x_hat' = x_hat + (sigma^2 / alpha) J^T A^T (s^2 I + r_t^2 A A^T)^-1 (y - A x_hat)

    Without noise in y this is A^+ (y - A x_hat) / r_t^2, hence the name. Exact for such data. The paper's r_t has
    data_std = 1.

    Args:
        denoiser, observation: As `Posterior`.
        data_std: The standard deviation of the data as the denoiser sees them.

    Raises:
        UserError: For a standard deviation that is not positive.
    """

    def __init__(self, denoiser: Any, observation: Any, data_std: Any = 1.0):
        super().__init__(denoiser, observation)
        self.data_std = positive_number("data_std", data_std)

    def solve(self, residual: Tensor, covariance: Covariance, alpha: Tensor, sigma: Tensor) -> Tensor:
        c = self.data_std
        r2 = (c * sigma).square() / ((alpha * c).square() + sigma.square())
        noise = torch.tensor(self.observation.noise_std**2, dtype=r2.dtype)
        return self.observation.operator.solve(residual, r2, noise)
