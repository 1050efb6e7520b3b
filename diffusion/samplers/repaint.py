"""RePaint (Lugmayr et al. 2022, arXiv 2201.09865): inpainting with any solver, replacing the known pixels at each step.

After a step to s the known pixels of x_s are replaced by draws of q(x_s | known). As the other pixels were drawn
without them, each stretch of the grid is repeated several times, adding noise in between to go from x_s back to x_t,
until both agree. It needs no gradient. More resamples come closer to the posterior (docs/control.md has figures).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser, DenoiserWrapper
from ..errors import UserError, check_at_least_one
from ..schedules import Schedule
from ..schedules.forward_process import transition
from .ancestral import Ancestral
from .sampler import LinearSampler, Sampler, check_fields


class _Known(DenoiserWrapper):
    """A denoiser whose x_hat contains the known pixels."""

    def __init__(self, denoiser: Denoiser, known: Tensor, kept: Tensor):
        super().__init__(denoiser)
        self.known, self.kept = known, kept

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return torch.where(self.kept, self.known, self.denoiser(x_t, t, cond))


@dataclass(frozen=True, eq=False)
class RePaint(Sampler):
    """Algorithm 1 of the paper, with resampling by jumps of `jump` steps (its appendix B), around any step.

    Each stretch of `jump` intervals of the grid is integrated `resamples` times: resamples times as many evaluations as
    steps.

    Args:
        known: The known image, read where `kept` is true, of shape (*shape) or (1 or B, *shape).
        kept: Booleans of the shape of a sample: true where it is known.
        step: The solver of the steps, with one evaluation each.
        jump: The intervals of a stretch; the paper uses 10 of 250, 1 or 2 of 20 work best (docs/control.md).
        resamples: How often each is repeated (10 in the paper); 1 only replaces the known pixels.

    Raises:
        UserError: For a jump or resamples below 1, or a mask that is not boolean.
    """

    known: Float[Tensor, " *bdims"]
    kept: Tensor
    step: LinearSampler = field(default_factory=Ancestral)
    jump: int = 1
    resamples: int = 10
    order: ClassVar[int] = 1
    is_stochastic: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self)
        if self.kept.dtype != torch.bool:
            raise UserError(f"kept: found {self.kept.dtype}; needs booleans, true where the image is known")
        check_at_least_one(jump=self.jump, resamples=self.resamples)

    @property
    def default_steps(self) -> int:
        return self.step.steps or super().default_steps

    @property
    def evaluations_per_step(self) -> int:
        return self.resamples

    def sample(self, denoiser, x_1, grid, noise=None, cond=None, callback=None):
        known, kept = self.known.to(x_1), self.kept.to(x_1.device)
        try:
            fits = torch.broadcast_shapes(known.shape, kept.shape, x_1.shape) == x_1.shape
        except RuntimeError:
            fits = False
        if not fits:
            found = f"{tuple(known.shape)} and {tuple(kept.shape)}"
            raise UserError(f"known, kept: found shapes {found}; the data have {tuple(x_1.shape[1:])}")
        return super().sample(_Known(denoiser, known, kept), x_1, grid, noise, cond, callback)

    def integrate(self, denoiser, x, times, noise, cond, callback):
        assert noise is not None  # `sample` has seen to it
        assert isinstance(denoiser, _Known)
        schedule, numbers = denoiser.schedule, count()

        def fresh(step: int = 0) -> Tensor:
            return noise(next(numbers))  # no number twice, however often a stretch is repeated

        last = len(times) - 1
        for first in range(0, last, self.jump):
            end = min(first + self.jump, last)
            for repeat in range(self.resamples):
                if repeat:
                    x = _back(schedule, x, times[end], times[first], fresh)
                for i in range(first, end):
                    pair = times[i : i + 2]
                    x = self.step.integrate(denoiser, x, pair, fresh, cond, None)
                    alpha, sigma = schedule(pair[1])
                    x = torch.where(denoiser.kept, alpha.to(x.dtype) * denoiser.known + sigma.to(x.dtype) * fresh(), x)
                    if callback is not None and repeat == self.resamples - 1:
                        callback(i, float(pair[1]), x, None)
        return x


def _back(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
    """A draw of q(x_t | x_s) for s < t."""
    scale, variance = transition(schedule, s, t)
    return scale.to(x.dtype) * x + variance.sqrt().to(x.dtype) * fresh()
