"""What a solver must do to Gaussian data, in closed form: the truth that `doctor` holds samplers against.

Data N(m, c^2) have E[x | x_t] affine in x_t, x_t ~ N(alpha_t m, V_t) with V_t = alpha_t^2 c^2 + sigma_t^2, and the
probability flow carries one law into the other,

    x_s = alpha_s m + sqrt(V_s / V_t) (x_t - alpha_t m).

A sampler that is affine in its state and in its noises is x = A x_1 + B + sum_k C_k z_k there. One batch, in which each
row has one of these inputs at one and the others at zero, reads A, B and every C_k off, and the law of x is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...denoisers.exact import Gaussian
from ...samplers import Sampler


def law_at(model: Gaussian, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t."""
    alpha, sigma = (value.to(model.mean) for value in model.schedule(t))
    return alpha * model.mean, (alpha * model.std) ** 2 + sigma**2


def probability_flow(model: Gaussian, x_t: Float[Tensor, " b *dims"], t: Tensor, s: Tensor) -> Tensor:
    """The probability flow's state at s that passes through x_t (B, *shape) at t (): s is (), or (S, 1, ...) for S."""
    (mean_t, variance_t), (mean_s, variance_s) = law_at(model, t), law_at(model, s)
    return mean_s + torch.sqrt(variance_s / variance_t) * (x_t - mean_t)


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

    def push(self, mean: Tensor, variance: Tensor) -> tuple[float, float]:
        """Mean and variance of x for x_1 of this mean and variance."""
        pushed = self.gain**2 * variance + self.fresh.square().sum()
        return float(self.gain * mean + self.offset), float(pushed)


def affine_law(sampler: Sampler, model: Gaussian, grid: Tensor) -> AffineLaw:
    """Read the law of a sampler off its public interface, for a Gaussian of shape (1,)."""
    like = model.mean
    asked: list[int] = []

    def listen(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1).to(like)

    sampler.sample(model, torch.zeros(1, 1).to(like), grid, listen)
    # Rows: all zero, x_1 alone, each noise alone, and all of them at numbers of no pattern.
    inputs = torch.cat((torch.zeros(1, 1 + len(asked)), torch.eye(1 + len(asked))))
    some = torch.randn(1, 1 + len(asked), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat((inputs, some)).to(like)

    def noise(step: int) -> Tensor:
        return inputs[:, [1 + asked.index(step)]].clone()

    x = sampler.sample(model, inputs[:, :1].clone(), grid, noise)[:, 0]
    parts = x[1:-1] - x[0]
    residual = float((x[-1] - x[0] - (inputs[-1] * parts).sum()).abs())
    return AffineLaw(parts[0], x[0], parts[1:], residual)
