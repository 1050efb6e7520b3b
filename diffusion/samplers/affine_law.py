"""The exact law of a sampler on Gaussian data, which `doctor` and the tests of the samplers compare with the true one.

Data N(m, c^2) have E[x | x_t] affine in x_t, so that most samplers are affine in their state and in their noises there:
x = A x_1 + B + sum_k C_k z_k. One batch, in which each row has one of these inputs at one and the others at zero, gives
A, B and every C_k, and with them the mean and the variance of x, without drawing. `Gaussian.law_at` is the true law.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.denoiser import Denoiser, device_of
from .sampler import Sampler


@dataclass(frozen=True, eq=False)
class AffineLaw:
    """x = gain x_1 + offset + sum_k fresh_k z_k.

    Args:
        gain, offset: Shape ().
        fresh: Of each noise, shape (K,).
        residual: How far an independent run is from this formula; 0 up to rounding where the sampler is affine.
    """

    gain: Tensor
    offset: Tensor
    fresh: Tensor
    residual: float

    def push(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and variance of x for x_1 of this mean and variance."""
        return self.gain * mean + self.offset, self.gain**2 * variance + self.fresh.square().sum()


def affine_law(sampler: Sampler, denoiser: Denoiser, grid: Tensor) -> AffineLaw:
    """Determine the law of a sampler through its public interface, in double precision.

    Args:
        sampler: The sampler.
        denoiser: One that is affine in x_t, of shape (1,), e.g. `exact.Gaussian`.
        grid: Decreasing times, shape (N + 1,).
    """
    like = torch.zeros((), dtype=torch.float64, device=device_of(denoiser))
    evaluated: list[int] = []

    def listen(step: int) -> Tensor:
        evaluated.append(step)
        return torch.zeros(1, 1).to(like)

    if sampler.is_stochastic:
        sampler.sample(denoiser, torch.zeros(1, 1).to(like), grid, listen)
    # Rows: all zero, x_1 alone, each noise alone, and all of them at numbers of no pattern.
    inputs = torch.cat((torch.zeros(1, 1 + len(evaluated)), torch.eye(1 + len(evaluated))))
    some = torch.randn(1, 1 + len(evaluated), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat((inputs, some)).to(like)

    def noise(step: int) -> Tensor:
        return inputs[:, [1 + evaluated.index(step)]].clone()

    x = sampler.sample(denoiser, inputs[:, :1].clone(), grid, noise)[:, 0]
    parts = x[1:-1] - x[0]
    residual = float((x[-1] - x[0] - (inputs[-1] * parts).sum()).abs())
    return AffineLaw(parts[0], x[0], parts[1:], residual)
