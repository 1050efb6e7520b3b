"""The discrete schedule of DDPM; betas and alphas_cumprod appear only here.

DDPM (Ho et al. 2020, arXiv 2006.11239) has T noise levels, x_i = sqrt(alphas_cumprod_i) x + sqrt(1 - ...) eps for
i = 1 .. T. Here level i is the time t = i / T, and between two levels the log-SNR is linear in time: at the levels the
path equals DDPM's to the last bit, and between them it is continuous, so any solver can integrate it.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..config import ScheduleConfig
from ..errors import UserError, choose
from ..numerics.arrays import REFUSED, as_tensor, described
from .schedule import NOISE_END, Schedule, check_ends, check_numbers, log_sigmoid_alpha

BETAS = (*ScheduleConfig.words("betas"), "scaled-linear", "sigmoid")  # the last two: of models of others
_MOST_STEPS = 1_000_000


@lru_cache(maxsize=16)
def _betas(kind: str, steps: int, beta_start: float, beta_end: float) -> Tensor:
    if kind == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    if kind == "scaled-linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
    if kind == "sigmoid":
        rise = torch.sigmoid(torch.linspace(-6.0, 6.0, steps, dtype=torch.float64))
        return beta_start + (beta_end - beta_start) * rise
    # Nichol and Dhariwal 2021, eq. 17, with their offset and cap
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    alphas_cumprod = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


@lru_cache(maxsize=16)
def _log_snrs(kind: str, steps: int, beta_start: float, beta_end: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the table may also be used where gradients are taken
        return _log_snrs_of(_betas(kind, steps, beta_start, beta_end)).to(device)


def _log_snrs_of(betas: Tensor) -> Tensor:
    """The log-SNR of every level."""
    log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
    # -log(expm1(-log_alphas_cumprod)), where the exponential may overflow
    return log_alphas_cumprod - torch.log(-torch.expm1(log_alphas_cumprod))


class Levels(Schedule):
    """A variance-preserving path through T levels at the times 1/T .. 1, linear in log-SNR between them.

    Attributes:
        steps: The number T of levels.
    """

    steps: int

    @abstractmethod
    def _log_snrs(self, device: torch.device) -> Tensor:
        """The log-SNR of every level, float64 of shape (T,)."""

    def _table(self, like: Tensor) -> Tensor:
        """The log-SNR at the levels, kept for each device: an attribute is what a compiled graph can refer to."""
        if (found := self._tables.get(like.device)) is None:
            found = self._tables[like.device] = self._log_snrs(like.device)
        return found

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The log-SNR at the left end of the segment that holds t, its slope, and the time since that end."""
        table = self._table(t)
        position = t.to(torch.float64) * self.steps - 1.0
        left = position.floor().clamp(0, self.steps - 2).long()
        slope = (table[left + 1] - table[left]) * self.steps
        return table[left], slope, (position - left) / self.steps

    def log_snr(self, t: Tensor) -> Tensor:
        left, slope, elapsed = self._segment(t)
        return (left + slope * elapsed).to(t.dtype)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr)
        value = log_snr.to(torch.float64)
        left = (torch.searchsorted(-table, -value.contiguous(), right=True) - 1).clamp(0, self.steps - 2)
        slope = (table[left + 1] - table[left]) * self.steps
        return ((left.to(torch.float64) + 1.0) / self.steps + (value - table[left]) / slope).to(log_snr.dtype)

    def log_alpha(self, t: Tensor) -> Tensor:
        return log_sigmoid_alpha(self.log_snr(t))

    def d_log_snr(self, t: Tensor) -> Tensor:
        return self._segment(t)[1].to(t.dtype)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * torch.sigmoid(-self.log_snr(t)) * self.d_log_snr(t)

    @property
    def t_min(self) -> float:
        return 1.0 / self.steps

    @cached_property
    def t_max(self) -> float:
        return self._within_noise(1.0)


@dataclass(frozen=True)
class DDPM(Levels):
    """Discrete-time DDPM (arXiv 2006.11239, sec. 4; cosine: arXiv 2102.09672, eq. 17), interpolated between its levels.

    Args:
        steps: The number T of noise levels.
        betas: `linear` from beta_start to beta_end, `scaled-linear` (their roots are; arXiv 2112.10752), `sigmoid`, or
            `cosine` (which ignores both).
        beta_start: The first beta.
        beta_end: The last beta.
    """

    steps: int = 1000
    betas: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self):
        choose("schedule.betas", self.betas, BETAS)
        check_numbers(beta_start=self.beta_start, beta_end=self.beta_end)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 2 <= self.steps <= _MOST_STEPS:
            raise UserError(f"schedule.steps: found {self.steps}; must be a whole number from 2 to {_MOST_STEPS}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"schedule.beta_start, beta_end: found {self.beta_start}, {self.beta_end}; "
                "needs 0 < beta_start <= beta_end < 1"
            )
        check_ends(self, "schedule.steps, beta_start, beta_end")

    def alphas_cumprod(self) -> Tensor:
        """alpha_t^2 at the levels t = 1/T .. 1, float64 of shape (T,)."""
        return (1.0 - _betas(self.betas, self.steps, self.beta_start, self.beta_end)).cumprod(0)

    def _log_snrs(self, device: torch.device) -> Tensor:
        return _log_snrs(self.betas, self.steps, self.beta_start, self.beta_end, device)


@dataclass(frozen=True, repr=False)
class Table(Levels):
    """The levels of somebody's table.

    Args:
        log_snrs: The log-SNR of every level, decreasing (`of_betas`, `of_alphas_cumprod`).
    """

    log_snrs: tuple[float, ...]

    def __post_init__(self):
        if not 2 <= len(self.log_snrs) <= _MOST_STEPS or not bool(torch.tensor(self.log_snrs).diff().lt(0).all()):
            raise UserError(f"path: found a table of {len(self.log_snrs)} levels; needs two or more, ever noisier")
        check_ends(self, "path")

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self.log_snrs).encode()).hexdigest()[:12]
        return f"Table({self.steps} levels, log-SNR {self.log_snrs[0]:.4g} to {self.log_snrs[-1]:.4g}, {digest})"

    @classmethod
    def of_betas(cls, betas: Any) -> Table:
        """The path of a table of betas."""
        return cls(tuple(_log_snrs_of(_numbers("betas", betas, 0.0, 1.0)).clamp(min=NOISE_END).tolist()))

    @classmethod
    def of_alphas_cumprod(cls, alphas_cumprod: Any) -> Table:
        """The path of a table of alphas_cumprod; a first entry of exactly 1, the clean data, is not a level."""
        table = _numbers("alphas_cumprod", alphas_cumprod, 0.0, 1.0)
        table = table[1:] if float(table[0]) == 1.0 else table
        return cls(tuple((table.log() - torch.log1p(-table)).clamp(min=NOISE_END).tolist()))

    @property
    def steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number T of levels."""
        return len(self.log_snrs)

    def _log_snrs(self, device: torch.device) -> Tensor:
        with torch.inference_mode(False):
            return torch.tensor(self.log_snrs, dtype=torch.float64, device=device)


def levels_drawn(count: int, steps: int, grid: str, offset: int = 0) -> Tensor:
    """The levels, 0 the cleanest, that diffusers' `set_timesteps` takes, noisiest first, float64 of shape (steps,).

    Args:
        count: The number T of levels.
        steps: How many of them, at most T.
        grid: `leading` (multiples of the whole part of T / steps), `trailing` (from T - 1 down by T / steps) or `time`
            (its `linspace`), the last two rounded, halves to the even one.
        offset: Of `leading`: what is added.

    Raises:
        UserError: For more steps than levels.
    """
    if steps > count:
        raise UserError(f"steps: found {steps}; the model's own sampler takes at most its {count} levels")
    number = torch.arange(steps, dtype=torch.float64)
    if grid == "leading":
        return number.flip(0) * (count // steps) + offset
    if grid == "trailing":
        return (count + number * ((count - count / steps) - count)).round() - 1.0  # in the steps of numpy.arange
    return torch.linspace(0.0, count - 1.0, steps, dtype=torch.float64).round().flip(0)


def without_signal(levels: Levels) -> Tensor:
    """alphas_cumprod of a path whose last level has no signal: roots shifted and scaled (arXiv 2305.08891, alg. 1)."""
    times = torch.arange(1, levels.steps + 1, dtype=torch.float64) / levels.steps
    roots = torch.exp(levels.log_alpha(times))
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()


def _numbers(name: str, table: Any, low: float, high: float) -> Tensor:
    """A table of two or more numbers between two ends, float64."""
    try:
        plain = isinstance(table, list | tuple)  # whose numbers torch would round to float32
        found = as_tensor(table, torch.float64 if plain else None).detach().cpu().double()
    except REFUSED:
        raise UserError(f"path: found {name} {described(table)}; needs a table of numbers") from None
    if found.ndim != 1 or len(found) < 2 or not bool(((found >= low) & (found <= high)).all()):
        raise UserError(f"path: found {name} of shape {tuple(found.shape)}; needs (T,), each from {low:g} to {high:g}")
    return found
