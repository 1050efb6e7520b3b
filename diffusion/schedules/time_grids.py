"""Grids of times, from noise to data, for solvers.

A grid is a float64 tensor of steps + 1 decreasing times that starts at t_max and ends at clean data: its last entry is
exactly 0, and the solver's last step is then x = E[x | x_t], the limit of every solver's step as sigma -> 0. The other
entries are uniform between the ends of the path in one of these variables.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..config import GRIDS, STRIDES
from ..errors import UserError, choose
from ..numerics.arrays import whole_number
from .schedule import Schedule

# The density of steps over log-SNR is a Cauchy density; they end at a log-SNR of _END times the logarithm of their
# number. x_hat changes between the log-SNR at which modes are told apart and that of their width, which get most of the
# steps; the tails are heavy enough for modes that are far apart or narrow.
_END = 3.0

# The end in log-SNR, beyond which a solver with few steps wastes work on invisible noise.
# DDPM's lowest noise level, 9.21, lies within: T steps uniform in time are its T levels.
LOG_SNR_END = 9.25
# If no grid is requested, the others end at this many times the logarithm of the steps if that is later, i.e. from 62
# steps on: the error of the end then decreases with the steps. A larger factor is worse (docs/grids.md).
_LATER_END = 2.25


def _in_sigma_root(start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    """Karras et al. 2022 (arXiv 2206.00364), eq. 5 with rho = 7, in sigma / alpha."""
    roots = torch.exp(-0.5 * start / 7), torch.exp(-0.5 * end / 7)
    return -14.0 * torch.log(roots[0] + (roots[1] - roots[0]) * u)


def _in_angle(start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    """Uniform in arctan(sigma / alpha): the uniform times of the cosine schedule."""
    angles = torch.atan(torch.exp(-0.5 * start)), torch.atan(torch.exp(-0.5 * end))
    return -2.0 * torch.log(torch.tan(angles[0] + (angles[1] - angles[0]) * u))


def _in_cauchy(start: Tensor, end: Tensor, u: Tensor, centre: float = 1.0, scale: float = 4.0) -> Tensor:
    """Uniform in arctan((log-SNR - centre) / scale), a Cauchy distribution."""
    quantiles = torch.atan((torch.stack((start, end)) - centre) / scale)
    placed = centre + scale * torch.tan(quantiles[0] + (quantiles[1] - quantiles[0]) * u)
    return torch.where(u == 1.0, end, placed)


def _in_shifted(start: Tensor, end: Tensor, u: Tensor, dimension: int) -> Tensor:
    """As `cauchy`, with the centre and scale of a dimension.

    Squared distances between modes grow as d, so the log-SNR at which they are told apart falls as -log(d), while that
    of their width stays: the middle falls half as fast, and the range widens. Chosen on six kinds of mixtures and two
    trained models (docs/grids.md).
    """
    return _in_cauchy(start, end, u, 2.5 - 0.5 * math.log(dimension), 2.5 + 0.2 * math.log(dimension))


SHIFTED = "shifted"


def _log_snrs(name: str, start: Tensor, end: Tensor, u: Tensor, dimension: int) -> Tensor | None:
    """The log-SNR at the quantiles u of a grid between two; None of one that is laid over time."""
    if name == SHIFTED:
        return _in_shifted(start, end, u, dimension)
    if name == "cauchy":
        return _in_cauchy(start, end, u)
    if name == "log-snr":
        return start + (end - start) * u
    if name == "karras":
        return _in_sigma_root(start, end, u)
    return _in_angle(start, end, u) if name == "angle" else None


def default_end(name: str, steps: int) -> float:
    """The log-SNR at which a grid of this many steps ends, if the path reaches that far."""
    return _END * math.log(steps) if name in (SHIFTED, "cauchy") else LOG_SNR_END


def later_end(name: str, steps: int) -> float | None:
    """The end of a sampler's default grid (not a requested one) if it is later than `default_end`; else None."""
    end = _LATER_END * math.log(steps)
    return end if end > default_end(name, steps) else None


def time_grid(
    schedule: Any,
    steps: Any,
    name: str = "log-snr",
    log_snr_end: float | None = None,
    dimension: int = 20,
) -> Tensor:
    """A grid of `steps` intervals from t_max to clean data.

    Args:
        schedule: The path.
        steps: The number of intervals, at least 1; the last one ends at clean data.
        name: `shifted` (uniform in arctan((lambda - c) / s), c = 2.5 - log(d) / 2 and s = 2.5 + 0.2 log(d) in dimension
            d), `cauchy` (the same with c = 1, s = 4), `log-snr` (uniform in lambda), `karras` (sigma^(1/7)),
            `angle` (uniform in arctan(sigma / alpha)), `time` (uniform in the schedule's own time), `quadratic` (finer
            near the data), or in strides of t_max / steps: `trailing`, from t_max, or `leading`, which ends at t_min
            and begins a stride before t_max, as many published models are drawn from.
        log_snr_end: The log-SNR at which the last step, x = E[x | x_t], is taken, if the path reaches that far; by
            default 3 log(steps) for `shifted` and `cauchy`, 9.25 for the others. Data of standard deviation c are
            sampled with a standard deviation smaller by the factor c / sqrt(c^2 + exp(-log_snr_end)).
        dimension: The number of values of a sample, for `shifted`; at 20 its centre is that of `cauchy`.

    Returns:
        float64 times of shape (steps + 1,), decreasing from t_max (`leading`: from earlier) to 0.

    Raises:
        UserError: For an unknown name, steps or a dimension below 1, or an end that is not above the path's start, or
            given with strides.
    """
    choose("grid", name, GRIDS)
    if not isinstance(schedule, Schedule):
        raise UserError(f"schedule: found {str(schedule)[:60]}; needs one, e.g. diffusion.schedules.Cosine()")
    steps, dimension = whole_number("steps", steps, 1), whole_number("dimension", dimension, 1)
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    if name in STRIDES:
        return _in_strides(ends, steps, name, log_snr_end)
    start, end = schedule.log_snr(ends)
    if log_snr_end is None:
        log_snr_end = max(default_end(name, steps), float(start) + 1.0)
    if not log_snr_end > float(start):  # also refuses nan
        raise UserError(f"log_snr_end: found {log_snr_end:g}; must be above the path's start, {float(start):.4g}")
    end = end.clamp(max=log_snr_end)
    u = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    log_snrs = _log_snrs(name, start, end, u, dimension)
    if log_snrs is not None:
        times = schedule.inverse_log_snr(log_snrs)
    else:
        t_end = schedule.inverse_log_snr(end)
        times = ends[0] + (t_end - ends[0]) * {"time": u, "quadratic": 1 - (1 - u) ** 2}[name]
    times[0] = ends[0]
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))


def _in_strides(ends: Tensor, steps: int, name: str, log_snr_end: float | None) -> Tensor:
    """Times every t_max / steps, between the ends (t_max, t_min)."""
    if log_snr_end not in (None, math.inf):
        raise UserError(f"log_snr_end: found {log_snr_end:g}; grid '{name}' has its own end; leave it out")
    most = math.floor(float(ends[0] / ends[1]) * (1.0 + 1e-9)) if ends[1] > 0 else steps
    if steps > most:
        raise UserError(f"steps: found {steps}; grid '{name}' takes at most {most} on this path")
    left = torch.arange(steps, -1, -1, dtype=torch.float64) * (ends[0] / steps)
    if name == "trailing":
        return left
    return torch.cat(((left[1:] + ends[1]).clamp(max=ends[0]), torch.zeros(1, dtype=torch.float64)))
