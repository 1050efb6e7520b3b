"""The schedules in use, in continuous time, each with its log-SNR, the inverse and the derivatives in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import UserError
from .schedule import DATA_END, NOISE_END, Schedule, check_ends, check_numbers


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving, linear beta (Song et al. 2021, arXiv 2011.13456, eq. 29-33; the limit of DDPM).

    alpha_t = exp(-B_t / 2), sigma_t^2 = 1 - exp(-B_t), B_t = beta_min t + (beta_max - beta_min) t^2 / 2.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        log_snr_max: The log-SNR at which the path ends near the data (lambda is infinite at t = 0).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    log_snr_max: float = 14.0

    def __post_init__(self):
        check_numbers(beta_min=self.beta_min, beta_max=self.beta_max, log_snr_max=self.log_snr_max)
        _require(
            0 < self.beta_min <= self.beta_max,
            f"schedule.beta_min, beta_max: found {self.beta_min}, {self.beta_max}; needs 0 < beta_min <= beta_max",
        )
        check_ends(self, "schedule.beta_min, beta_max, log_snr_max")

    def beta(self, t: Tensor) -> Tensor:
        """beta_t, the rate at which signal is lost: f = -beta / 2."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _time_of_integral(self, b: Tensor) -> Tensor:
        # The root of the quadratic in the form that does not cancel near t = 0.
        return 2.0 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * b))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self._integral(t)
        return torch.exp(-0.5 * b), torch.sqrt(-torch.expm1(-b))

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._integral(t)

    def log_snr(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return -b - torch.log(-torch.expm1(-b))  # log(expm1(b)), where exp(b) may overflow

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integral(softplus(-log_snr, threshold=50.0))

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self.beta(t) / torch.expm1(-self._integral(t))

    @cached_property
    def t_min(self) -> float:
        return self._time_at(self.log_snr_max)

    @cached_property
    def t_max(self) -> float:
        return self._within_noise(1.0)


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, arXiv 2011.13456, eq. 29): alpha as VP, sigma_t = 1 - exp(-B_t).

    Arguments as `VP`.
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self._integral(t)
        return torch.exp(-0.5 * b), -torch.expm1(-b)

    def log_snr(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return -b - 2.0 * torch.log(-torch.expm1(-b))

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = exp(lambda / 2)  <=>  -log alpha = asinh(exp(-lambda / 2) / 2)
        return self._time_of_integral(2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))

    def d_log_snr(self, t: Tensor) -> Tensor:
        return -self.beta(t) / torch.tanh(0.5 * self._integral(t))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine (Nichol and Dhariwal 2021, arXiv 2102.09672, with no offset).

    alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2).

    Args:
        log_snr_max: The log-SNR at which the path ends near the data.
        log_snr_min: The log-SNR at which sampling starts; clamped to -30, where no signal remains.
    """

    log_snr_max: float = 14.0
    log_snr_min: float = -10.0

    def __post_init__(self):
        require_ends(self.log_snr_min, self.log_snr_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = 0.5 * math.pi * t
        return torch.cos(angle), torch.sin(angle)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(torch.cos(0.5 * math.pi * t))

    def log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * torch.log(torch.tan(0.5 * math.pi * t))

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return (2.0 / math.pi) * torch.atan(torch.exp(-0.5 * log_snr))

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.tan(0.5 * math.pi * t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * math.pi / torch.sin(math.pi * t)

    @cached_property
    def t_min(self) -> float:
        return self._time_at(self.log_snr_max)

    @cached_property
    def t_max(self) -> float:
        return self._time_at(max(self.log_snr_min, NOISE_END))


@dataclass(frozen=True)
class Rectified(Schedule):
    """Rectified flow, the straight path of flow matching (arXiv 2209.03003, 2210.02747): alpha = 1 - t, sigma = t.

    Arguments as `Cosine`.
    """

    log_snr_max: float = 14.0
    log_snr_min: float = -14.0

    def __post_init__(self):
        require_ends(self.log_snr_min, self.log_snr_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2.0 * (torch.log1p(-t) - torch.log(t))

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return -1.0 / (1.0 - t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return -2.0 / (t * (1.0 - t))

    @cached_property
    def t_min(self) -> float:
        return self._time_at(self.log_snr_max)

    @cached_property
    def t_max(self) -> float:
        return self._time_at(max(self.log_snr_min, NOISE_END))


class VarianceExploding(Schedule):
    """alpha = 1: the data are not scaled, noise is added. Subclasses give log sigma and its derivative and inverse."""

    t_min: ClassVar[float] = 1e-6  # sigma_min to six digits; in a grid, a time of exactly 0 means clean data

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    @cached_property
    def t_max(self) -> float:
        return self._within_noise(1.0)


@dataclass(frozen=True)
class VE(VarianceExploding):
    """Variance exploding (Song et al. 2021, arXiv 2011.13456, eq. 30): sigma_t = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: The noise at t = 0, in units of the data as the denoiser sees them.
        sigma_max: The noise at t = 1; about the largest distance between two data points.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        _require_sigmas(self.sigma_min, self.sigma_max)
        check_ends(self, "schedule.sigma_min, sigma_max")

    def log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * (math.log(self.sigma_min) + math.log(self.sigma_max / self.sigma_min) * t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -2.0 * math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class EDM(VarianceExploding):
    """EDM (Karras et al. 2022, arXiv 2206.00364, eq. 5): alpha = 1, sigma^(1/rho) linear in t.

    sigma_t = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho: uniform times are the paper's grid.

    Args:
        sigma_min: The noise at t = 0.
        sigma_max: The noise at t = 1.
        rho: 7 in the paper; larger spends more of the path near the data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        check_numbers(rho=self.rho)
        _require_sigmas(self.sigma_min, self.sigma_max)
        # Below, nearly all of the path is at times that float32 rounds to 0; above, the roots all round to one.
        _require(0.5 <= self.rho <= 1e9, f"schedule.rho: found {self.rho:g}; must be from 0.5 to 1e9")
        check_ends(self, "schedule.sigma_min, sigma_max")

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low, high - low

    def _root(self, t: Tensor) -> Tensor:
        low, span = self._ends
        return low + span * t

    def log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * self.rho * torch.log(self._root(t))

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        low, span = self._ends
        return (torch.exp(-0.5 * log_snr / self.rho) - low) / span

    def d_log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * self.rho * self._ends[1] / self._root(t)


def _require_sigmas(low: float, high: float) -> None:
    check_numbers(sigma_min=low, sigma_max=high)
    _require(0 < low < high, f"schedule.sigma_min, sigma_max: found {low}, {high}; needs 0 < sigma_min < sigma_max")


def require_ends(low: float, high: float) -> None:
    """Refuse log-SNR ends that are out of order or out of range."""
    check_numbers(log_snr_min=low, log_snr_max=high)
    _require(
        low < high and NOISE_END < high <= DATA_END,
        f"schedule.log_snr_min, log_snr_max: found {low}, {high}; needs log_snr_min < log_snr_max, "
        f"and this between {NOISE_END:.0f} and {DATA_END:.0f}",
    )
