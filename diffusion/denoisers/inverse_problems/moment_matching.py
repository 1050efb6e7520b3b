"""Moment-matching posterior sampling, "MMPS" (Rozet, Andry, Lanusse, Louppe 2024, arXiv 2405.13712)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...numerics.arrays import whole_number
from ..given import real_number
from .posterior import Covariance, Posterior


class MomentMatching(Posterior):
    """V = Cov[x | x_t] = (sigma^2 / alpha) J, the true covariance, by Tweedie's formula for the second moment.

        x_hat' = x_hat + V A^T (s^2 I + A V A^T)^-1 (y - A x_hat)

    is exact wherever p(x | x_t) is Gaussian, if the inverse is exact. The inverse is applied iteratively, with one
    vector-Jacobian product per iteration, so V is never formed (the J of an exact denoiser is symmetric). Stopping at a
    residual r gives an error of x_hat' of at most |r| / s, in the metric of the covariance of x given x_t and y:
    iterations stop when that is small, or at a direction in which V is negative, which is possible for a trained
    network but not for a covariance. Fewer `iterations` cost less and are less accurate (docs/control.md has figures).

    Args:
        denoiser, observation: As `Posterior`.
        iterations: The maximum number of iterations of the linear solver (`least_residual`).
        tolerance: The root mean square of the residual at which a sample's iterations stop, in units of y's noise s, or
            of a hundredth of the initial residual's if that is larger.

    Raises:
        UserError: For fewer than 1 iteration, or a tolerance that is negative or not finite.
    """

    def __init__(self, denoiser: Any, observation: Any, iterations: Any = 50, tolerance: Any = 1e-2):
        super().__init__(denoiser, observation)
        self.iterations = whole_number("iterations", iterations, 1)
        self.tolerance = real_number("tolerance", tolerance)
        if self.tolerance < 0.0:
            raise UserError(f"tolerance: found {tolerance}; must be 0 or more, e.g. 1e-2")

    def solve(self, residual: Tensor, covariance: Covariance, alpha: Tensor, sigma: Tensor) -> Tensor:
        operator, noise = self.observation.operator, self.observation.noise_std**2
        of_unit_data = sigma.square() / (alpha.square() + sigma.square())  # as in `PseudoInverse`

        def matrix(u: Tensor) -> Tensor:
            return noise * u + operator(covariance(operator.adjoint(u)))

        def near_inverse(u: Tensor) -> Tensor:
            return operator.solve(u, of_unit_data, torch.tensor(noise, dtype=of_unit_data.dtype))

        size = _dot(residual, residual).sqrt() / math.sqrt(residual[0].numel())
        relative = (self.observation.noise_std / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=1e-2)
        return least_residual(matrix, residual, self.iterations, self.tolerance * relative, near_inverse, 0.5 * noise)


def least_residual(
    matrix: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    tolerance: float | Tensor = 0.0,
    near_inverse: Callable[[Tensor], Tensor] | None = None,
    least: float | None = None,
) -> Tensor:
    """The u in the Krylov space of b with the least |b - matrix(u)|, row by row: generalised conjugate residuals.

    (Eisenstat, Elman, Schultz 1983, SIAM J. Numer. Anal. 20, 2.) Conjugate gradients, which the paper uses, need a
    symmetric positive matrix. That of a trained network is not exactly so, and they then diverge; here the residual
    decreases for any matrix, at the same cost.

    Args:
        matrix: A linear map of (B, *dims), acting on each row separately.
        b: Shape (B, *dims).
        iterations: The maximum number, each one application of the matrix; as many directions are held in memory.
        tolerance: A row stops at this residual relative to |b|; a number, or one per row, (B, 1, ..., 1).
        near_inverse: A preconditioner, an approximate inverse of the matrix.
        least: A row stops before a direction d with d matrix(d) below `least` d d; by default none does.
    """
    u, residual = torch.zeros_like(b), b
    enough = tolerance**2 * _dot(b, b)
    going = torch.ones_like(enough, dtype=torch.bool)
    directions: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(iterations):
        going &= _dot(residual, residual) > enough
        if not bool(going.any()):
            break
        direction = residual if near_inverse is None else near_inverse(residual)
        image = matrix(direction)
        for old, old_image, square in directions:
            share = _ratio(_dot(image, old_image), square)
            direction, image = direction - share * old, image - share * old_image
        if least is not None:
            going &= _dot(direction, image) >= least * _dot(direction, direction)
        square = _dot(image, image)
        length = torch.where(going, _ratio(_dot(residual, image), square), 0.0)
        u, residual = u + length * direction, residual - length * image
        directions.append((direction, image, square))
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, shape (B, 1, ..., 1)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
