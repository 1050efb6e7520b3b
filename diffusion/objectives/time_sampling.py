"""How training times are drawn: importance distributions over the log-SNR of the path.

A time distribution maps u in (0, 1) to a log-SNR and gives its density there; `stratified` makes the u of one global
batch evenly spaced with one common shift (VDM, arXiv 2107.00630, app. I.1), for any number of processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ObjectiveConfig
from ..denoisers.given import positive_number, real_number
from ..errors import UserError, choose
from ..numerics import random
from ..schedules import Schedule
from ..schedules.schedule import log_snr_ends


class TimeDistribution(ABC):
    """A distribution of training times on a path, expressed over log-SNR."""

    @abstractmethod
    def log_snr(self, schedule: Schedule, u: Tensor) -> Tensor:
        """The log-SNR at the quantile 1 - u (u = 0: the data end), for u in (0, 1)."""

    @abstractmethod
    def density(self, schedule: Schedule, log_snr: Tensor) -> Tensor:
        """The density over log-SNR, which integrates to one between the ends of the path."""


@dataclass(frozen=True)
class UniformTime(TimeDistribution):
    """t uniform in [t_min, t_max]."""

    def log_snr(self, schedule: Schedule, u: Tensor) -> Tensor:
        return schedule.log_snr(schedule.t_min + (schedule.t_max - schedule.t_min) * u)

    def density(self, schedule: Schedule, log_snr: Tensor) -> Tensor:
        return schedule.time_density(log_snr)


@dataclass(frozen=True)
class UniformLogSNR(TimeDistribution):
    """lambda uniform between the ends of the path: the ELBO's own measure."""

    def log_snr(self, schedule: Schedule, u: Tensor) -> Tensor:
        low, high = log_snr_ends(schedule)
        return high + (low - high) * u

    def density(self, schedule: Schedule, log_snr: Tensor) -> Tensor:
        low, high = log_snr_ends(schedule)
        return torch.full_like(log_snr, 1.0 / (high - low))


@dataclass(frozen=True)
class NormalLogSNR(TimeDistribution):
    """lambda normal, truncated at the ends of the path.

    EDM's log-normal noise, ln(sigma / alpha) ~ N(m, s^2), is lambda ~ N(-2m, (2s)^2); so is the logit-normal time of
    rectified flow, logit(t) ~ N(m, s^2) with sigma / alpha = t / (1 - t) (arXiv 2403.03206, sec. 3.1).

    Args:
        mean: The mean m of ln(sigma / alpha), or of logit(t).
        std: Its standard deviation s.
    """

    mean: float
    std: float

    def __post_init__(self):
        real_number("objective.time_mean", self.mean)
        positive_number("objective.time_std", self.std)

    def _standard(self, log_snr: Tensor) -> Tensor:
        return (log_snr + 2.0 * self.mean) / (2.0 * self.std)

    def _cut(self, schedule: Schedule) -> tuple[float, float]:
        """The distribution function at the noise end and at the data end."""
        standard = ((end + 2.0 * self.mean) / (2.0 * self.std) for end in log_snr_ends(schedule))
        low, high = (0.5 * math.erfc(-end * math.sqrt(0.5)) for end in standard)
        if not low < high:
            raise UserError(
                f"objective.time_mean: found {self.mean:g} (time_std {self.std:g}); no time of the path is there"
            )
        return low, high

    def log_snr(self, schedule: Schedule, u: Tensor) -> Tensor:
        low, high = self._cut(schedule)
        quantile = high + (low - high) * u.to(torch.float64)
        return (torch.special.ndtri(quantile) * (2.0 * self.std) - 2.0 * self.mean).to(u.dtype)

    def density(self, schedule: Schedule, log_snr: Tensor) -> Tensor:
        low, high = self._cut(schedule)
        peak = 1.0 / (2.0 * self.std * (2.0 * math.pi) ** 0.5 * (high - low))
        return peak * torch.exp(-0.5 * self._standard(log_snr) ** 2)


def time_distribution(name: str, mean: float | None = None, std: float | None = None) -> TimeDistribution:
    """Make a time distribution.

    Args:
        name: `uniform` (in time), `log-snr` (uniform in log-SNR), `log-normal` (EDM: mean -1.2, std 1.2 of ln(sigma))
            or `logit-normal` (mean 0, std 1 of logit(t)).
        mean: Replaces the default mean.
        std: Replaces the default standard deviation.

    Raises:
        UserError: For an unknown name, or a mean or std for a distribution without them.
    """
    choose("objective.time", name, ObjectiveConfig.words("time"))
    if default := ObjectiveConfig.variants()["time"].get(name):
        return NormalLogSNR(default["time_mean"] if mean is None else mean, default["time_std"] if std is None else std)
    if mean is not None or std is not None:
        raise UserError(f"objective.time_mean, time_std: objective.time '{name}' does not take them")
    return {"uniform": UniformTime, "log-snr": UniformLogSNR}[name]()


def draw_u(seed: int, step: int | Tensor, positions: Tensor, batch_size: int, stratified: bool) -> Tensor:
    """The uniforms of a training step, float64 (B,), for the samples at these positions of the global batch.

    Args:
        seed: The run's seed.
        step: The optimiser step.
        positions: Positions in the global batch, 0 .. batch_size - 1, shape (B,).
        batch_size: The size of the global batch.
        stratified: Evenly spaced with a common random shift instead of independent.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}; must be at least 1")
    if not stratified:
        return random.uniform(seed, positions, step, (), random.STREAM_TRAIN_TIME, torch.float64)
    if isinstance(step, int):
        shift = random.one_uniform(seed, 0, step, random.STREAM_TRAIN_TIME)
    else:
        shift = random.uniform(seed, torch.zeros_like(positions[:1]), step, (), random.STREAM_TRAIN_TIME, torch.float64)
    return evenly_spaced(shift, positions, batch_size)


def evenly_spaced(shift: float | Tensor, positions: Tensor, batch_size: int) -> Tensor:
    """Uniforms of a batch, 1 / batch_size apart, shifted by one uniform (VDM, arXiv 2107.00630, app. I.1)."""
    return (shift + positions.to(torch.float64) / batch_size) % 1.0
