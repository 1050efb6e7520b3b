"""A path between ends of one's own choice: the same alpha and sigma at the same times, from another t_min to t_max.

Where a path ends is a convention of the measurement. A likelihood that hangs on it says so when the ends are moved
(`error_budget`); the densities of `flow_density` are then of the data with more noise left in them, or of a prior that
takes over earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..schedules import Schedule
from ..schedules.schedule import log_snr_ends


@dataclass(frozen=True)
class Between(Schedule):
    """The `path` between the times `start` (nearest to the data) and `end`."""

    path: Schedule
    start: float
    end: float

    @property
    def t_min(self) -> float:
        return self.start

    @property
    def t_max(self) -> float:
        return self.end

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.path.log_alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.path.log_snr(t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.path.inverse_log_snr(log_snr)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return self.path.d_log_alpha(t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self.path.d_log_snr(t)


def between(path: Schedule, log_snr_min: float | None, log_snr_max: float | None) -> Schedule:
    """The path cut off at two log-SNRs; None leaves an end where it is, and no end is moved outwards.

    Raises:
        UserError: Where nothing of the path is left.
    """
    low, high = log_snr_ends(path)
    new_low = low if log_snr_min is None else max(low, log_snr_min)
    new_high = high if log_snr_max is None else min(high, log_snr_max)
    if not new_low < new_high:
        raise UserError(
            f"log_snr_min, log_snr_max: found {new_low:.2f} and {new_high:.2f}; accepted: the first below the second, "
            f"on a path from {low:.2f} to {high:.2f}"
        )
    if (new_low, new_high) == (low, high):
        return path

    def time(log_snr: float) -> float:
        return float(path.inverse_log_snr(torch.tensor(log_snr, dtype=torch.float64)))

    return Between(
        path, path.t_min if new_high == high else time(new_high), path.t_max if new_low == low else time(new_low)
    )
