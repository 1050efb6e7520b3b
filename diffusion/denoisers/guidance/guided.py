"""Shared by guidance methods that extrapolate: the weight, and the noise levels at which they act."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import UserError
from ...schedules import Schedule
from ..denoiser import DenoiserWrapper
from ..given import real_number


@dataclass(frozen=True)
class Interval:
    """low < sigma / alpha <= high (Kynkaanniemi et al. 2024, arXiv 2404.07724): noise relative to the data on any path.

    Guidance reduces diversity at high noise and only costs time at low noise; the paper guides in between.

    Args:
        low: The lower end, 0 or more.
        high: The upper end, above `low`.

    Raises:
        UserError: For ends that are not in order.
    """

    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self):
        if not 0.0 <= self.low < self.high:
            raise UserError(
                f"guidance interval: found {self.low} to {self.high}; needs 0 <= low < high (sigma / alpha)"
            )

    @classmethod
    def of(cls, ends: Any) -> Interval:
        """The interval itself, or one with the two given ends, numbers of any library.

        Raises:
            UserError: For anything else.
        """
        if isinstance(ends, cls):
            return ends
        try:
            low, high = (float(end) for end in ends)
        except (TypeError, ValueError):
            raise UserError(
                f"guidance_interval: found {ends!r}; needs two numbers, low and high (sigma / alpha)"
            ) from None
        return cls(low, high)

    def holds(self, schedule: Schedule, t: Float[Tensor, " *b"]) -> Bool[Tensor, " *b"]:
        """Whether each time is within."""
        level = torch.exp(-0.5 * schedule.log_snr(t))
        return (level > self.low) & (level <= self.high)


ALWAYS = Interval()


class Guided(DenoiserWrapper):
    """x_hat = away + w (towards - away) within an interval of noise levels, x_hat = towards outside of it.

    Abstract: `towards` is the guided denoiser, subclasses define `away`. A pair counts as two evaluations; if the
    weight is 1, or the noise outside the interval, one is made.

    Args:
        denoiser: The denoiser that is guided.
        weight: The guidance weight w; 1 is off.
        interval: Where it acts.
    """

    def __init__(self, denoiser: Any, weight: Any, interval: Any = ALWAYS):
        super().__init__(denoiser)
        self.weight = real_number("weight", weight)
        self.interval = Interval.of(interval)

    @abstractmethod
    def pair(self, x_t: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        """The two estimates, (towards, away). Arguments as `forward`."""

    def forward(
        self, x_t: Float[Tensor, " b *dims"], t: Float[Tensor, " *b"], cond: Any = None
    ) -> Float[Tensor, " b *dims"]:
        """Return the guided x_hat. Arguments as `Denoiser.forward`."""
        within = self.interval.holds(self.schedule, t)
        if self.weight == 1.0 or not bool(within.any()):
            return self.denoiser(x_t, t, cond)
        if bool(within.all()):
            return self._extrapolated(x_t, t, cond)
        # Samples at different times, some inside: each part separately, so that no evaluation is wasted.
        x_hat = torch.empty_like(x_t)
        for part, answer in ((within, self._extrapolated), (~within, self.denoiser)):
            rows = part.nonzero()[:, 0].to(x_t.device)
            x_hat[rows] = answer(x_t[rows], t[part], None if cond is None else cond[rows.to(cond.device)])
        return x_hat

    def _extrapolated(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        towards, away = self.pair(x_t, t, cond)
        return torch.lerp(away, towards, self.weight)
