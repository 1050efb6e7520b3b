"""A schedule is the pair (alpha, sigma) of a Gaussian path; everything else follows from it.

    x_t = alpha_t x + sigma_t eps,    eps ~ N(0, I),    t in [0, 1], 0 = data, 1 = noise

How noisy x_t is, regardless of its scale, is measured by the log signal-to-noise ratio

    lambda_t = log(alpha_t^2 / sigma_t^2),

strictly decreasing in t. A path is therefore given by (log alpha_t, lambda_t) and by their derivatives in time:
sigma_t = alpha_t exp(-lambda_t / 2), f = d log alpha / dt and g^2 = -sigma^2 d lambda / dt (see `samplers.sde.sde`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UserError

# Where every path begins at the latest. The data are then 3e-7 of x_t, less than float32 rounding: steps beyond are the
# identity, and the data can neither be learned nor distinguished from noise.
NOISE_END = -30.0
# Where every path ends at the latest: the remaining noise is 1e-13 of the data, at the rounding of float64.
DATA_END = 60.0
# Where training ends at the latest: in float32, noise below 3e-7 of the data is indistinguishable from none.
TRAINED_DATA_END = 30.0


class Schedule(ABC):
    """An abstract Gaussian path. Every method acts elementwise on a tensor of times and keeps its dtype and device.

    A concrete schedule is a frozen dataclass with the numbers of its formula, and the ends of the path: the formula may
    be singular at t = 0 or t = 1 (lambda = +-infinity), so training and solvers stay within [t_min, t_max].

    Attributes:
        is_learned: Whether it has parameters that are trained with the network; it is then also an `nn.Module`.
    """

    is_learned: ClassVar[bool] = False

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = log(alpha_t^2 / sigma_t^2), strictly decreasing."""

    @abstractmethod
    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which the path has this log-SNR."""

    @abstractmethod
    def d_log_alpha(self, t: Tensor) -> Tensor:
        """d log alpha_t / dt, the drift f of the forward SDE."""

    @abstractmethod
    def d_log_snr(self, t: Tensor) -> Tensor:
        """d lambda_t / dt, negative."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The smallest time that training and solvers use."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The time at which sampling starts."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t)."""
        log_alpha = self.log_alpha(t)
        return log_alpha.exp(), (log_alpha - 0.5 * self.log_snr(t)).exp()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha', sigma'), the derivatives of alpha_t and sigma_t in time."""
        alpha, sigma = self(t)
        f = self.d_log_alpha(t)
        return alpha * f, sigma * (f - 0.5 * self.d_log_snr(t))

    def time_density(self, log_snr: Tensor) -> Tensor:
        """The density of lambda_t over log-SNR for t uniform in [t_min, t_max]: 1 / ((t_max - t_min) |d lambda / dt|).

        For a learned schedule it is differentiable in the parameters.
        """
        return -1.0 / ((self.t_max - self.t_min) * self.d_log_snr(self.inverse_log_snr(log_snr)))

    @property
    def prior_std(self) -> float:
        """The standard deviation of x at t_max for data of unit variance: sqrt(alpha^2 + sigma^2)."""
        alpha, sigma = self(torch.tensor(self.t_max, dtype=torch.float64))
        return float(torch.hypot(alpha, sigma))

    @cached_property
    def log_snr_ends(self) -> tuple[float, float]:
        """The log-SNR at the noise end of the path, t_max, and at its data end, t_min; computed once."""
        low, high = self.log_snr(torch.tensor([self.t_max, self.t_min], dtype=torch.float64)).tolist()
        return low, high

    def _time_at(self, log_snr: float) -> float:
        return float(self.inverse_log_snr(torch.tensor(log_snr, dtype=torch.float64)))

    def _within_noise(self, t: float) -> float:
        """The time `t`, or that of `NOISE_END` if the path reaches it earlier."""
        beyond = float(self.log_snr(torch.tensor(t, dtype=torch.float64))) < NOISE_END
        return self._time_at(NOISE_END) if beyond else t


def check_numbers(**numbers: object) -> None:
    """Refuse settings of a schedule that are not finite numbers."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"schedule.{name}: found {value!r}; must be a finite number of Python's own")


def check_ends(schedule: Schedule, keys: str) -> None:
    """Refuse a path whose ends cannot be represented in floating point.

    Args:
        schedule: The path.
        keys: The settings that determine the ends, as named in the message.
    """
    low, high = log_snr_ends(schedule)
    if not NOISE_END - 1e-3 <= low < high <= DATA_END:
        raise UserError(
            f"{keys}: make a path from log-SNR {low:.4g} to {high:.4g}; it must rise, "
            f"and its data end lie between {NOISE_END:.0f} and {DATA_END:.0f}"
        )


def log_sigmoid_alpha(log_snr: Tensor) -> Tensor:
    """log alpha of a variance-preserving path (alpha^2 + sigma^2 = 1): log(sigmoid(lambda)) / 2."""
    return 0.5 * torch.nn.functional.logsigmoid(log_snr)


def log_snr_ends(schedule: Schedule) -> tuple[float, float]:
    """The log-SNR at the noise end of the path, t_max, and at its data end, t_min."""
    return schedule.log_snr_ends
