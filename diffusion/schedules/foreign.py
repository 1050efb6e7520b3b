"""Paths of models made elsewhere: the VE path of score_sde's tutorial, two functions, a path in other units."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import UserError
from .continuous import VarianceExploding
from .schedule import Schedule, check_ends, check_numbers

_POINTS, _HALVINGS = 4096, 50
_LOG_SNR_MAX, _LOG_SNR_MIN = 14.0, -14.0  # where a path ends whose own ends are infinite


@dataclass(frozen=True)
class SongVE(VarianceExploding):
    """Variance exploding from exactly clean data: dx = sigma^t dw, so that sigma_t^2 = (sigma^2t - 1) / (2 log sigma).

    Args:
        sigma: 25 in the tutorial of score_sde.
        earliest: The smallest time, 1e-5 in its training.
    """

    sigma: float = 25.0
    earliest: float = 1e-5

    def __post_init__(self):
        check_numbers(sigma=self.sigma, earliest=self.earliest)
        if not self.sigma > 1.0 or not 0.0 < self.earliest < 1.0:
            raise UserError(
                f"path: found sigma {self.sigma}, earliest {self.earliest}; needs sigma > 1, earliest in (0, 1)"
            )
        check_ends(self, "path")

    @property
    def _rate(self) -> float:
        return 2.0 * math.log(self.sigma)

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(self._rate * t) / self._rate)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.log1p(self._rate * torch.exp(-log_snr)) / self._rate

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self._rate / torch.expm1(-self._rate * t)

    @cached_property
    def t_min(self) -> float:
        return self.earliest


@dataclass(frozen=True, repr=False)
class Functions(Schedule):
    """The path of two functions of time, differentiated by autograd and inverted by bisection.

    Args:
        alpha, sigma: From a tensor of times in (0, 1), 0 the data, to alpha_t and sigma_t, elementwise, in torch.

    Raises:
        UserError: For functions that are not, or a signal-to-noise ratio that does not fall throughout.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]

    def __post_init__(self):
        with torch.no_grad():
            log_snr = self._inside
        if not bool(torch.isfinite(log_snr).all()) or not bool((log_snr.diff() < 0).all()):
            raise UserError("path: alpha_t / sigma_t of the two functions must be positive and fall from t = 0 to 1")
        check_ends(self, "path")

    def __repr__(self) -> str:
        """By its values on a grid: the same in another process."""
        with torch.no_grad():
            values = torch.stack(self._values(self._times)).flatten().tolist()
        digest = hashlib.sha256(" ".join(f"{value:.9g}" for value in values).encode()).hexdigest()[:12]
        return f"Functions({float(self._inside[0]):.4g} to {float(self._inside[-1]):.4g} in log-SNR, {digest})"

    @cached_property
    def _times(self) -> Tensor:
        return torch.arange(1, _POINTS, dtype=torch.float64) / _POINTS

    @cached_property
    def _inside(self) -> Tensor:
        return self.log_snr(self._times)

    def _values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        try:
            alpha, sigma = (torch.as_tensor(value(t), dtype=t.dtype) for value in (self.alpha, self.sigma))
            return alpha.expand(t.shape), sigma.expand(t.shape)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:100]
            raise UserError(f"path: the functions (alpha, sigma) failed on a tensor of times ({reason})") from error

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._values(t)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._values(t)[0].log()

    def log_snr(self, t: Tensor) -> Tensor:
        alpha, sigma = self._values(t)
        return 2.0 * (alpha.log() - sigma.log())

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        wanted, inside = log_snr.to(torch.float64), self._inside.to(log_snr.device)
        above = torch.searchsorted(-inside, -wanted.contiguous()).to(torch.float64)
        low, high = above / _POINTS, (above + 1.0) / _POINTS
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            noisier = self.log_snr(middle) < wanted
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (0.5 * (low + high)).to(log_snr.dtype)

    def _derivative(self, of: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            at = t.detach().clone().requires_grad_()
            value = of(at)
            if not value.requires_grad:  # constant
                return torch.zeros_like(t)
            return torch.autograd.grad(value.sum(), at)[0]

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return self._derivative(self.log_alpha, t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self._derivative(self.log_snr, t)

    @cached_property
    def t_min(self) -> float:
        return self._time_at(_LOG_SNR_MAX)

    @cached_property
    def t_max(self) -> float:
        end = float(self.log_snr(torch.ones((), dtype=torch.float64)))
        return self._within_noise(1.0) if math.isfinite(end) else self._time_at(_LOG_SNR_MIN)


@dataclass(frozen=True)
class Scaled(Schedule):
    """A path seen in other units of the data: for x = y / scale, y_t / scale has the noise sigma_t / scale.

    Args:
        path: The path of y.
        scale: The factor.
        log_snr_max: Where it ends near the data, if that is earlier than the end of `path`; in units of x.
    """

    path: Schedule
    scale: float = 1.0
    log_snr_max: float | None = None

    def __post_init__(self):
        low, high = (float(value) for value in self.log_snr(torch.tensor([self.t_max, self.path.t_min]).double()))
        if self.log_snr_max is not None and not low < self.log_snr_max:
            raise UserError(f"log_snr_max: found {self.log_snr_max:g}; the path is from {low:.4g} to {high:.4g}")
        check_ends(self, "path, data_range")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.path(t)
        return alpha, sigma / self.scale

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = self.path.derivatives(t)
        return d_alpha, d_sigma / self.scale

    @property
    def _shift(self) -> float:
        return 2.0 * math.log(self.scale)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.path.log_alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.path.log_snr(t) + self._shift

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.path.inverse_log_snr(log_snr - self._shift)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return self.path.d_log_alpha(t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self.path.d_log_snr(t)

    @cached_property
    def t_min(self) -> float:
        earliest = self.path.t_min
        return earliest if self.log_snr_max is None else max(earliest, self._time_at(self.log_snr_max))

    @cached_property
    def t_max(self) -> float:
        return self._within_noise(self.path.t_max)
