"""Adaptive steps for the reverse SDE (Jolicoeur-Martineau et al. 2021, "Gotta go fast", arXiv 2105.14080)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import SolverError, UserError, check_at_least_one
from ...numerics.broadcasting import pad_dims_like
from ...numerics.brownian import Weights, draw, lattice
from ...numerics.random import Noise
from ...schedules import Schedule
from ..sampler import NoiseFunction
from .stochasticity import EtaSampler, EtaSteps

_SAFETY, _EXPONENT = 0.9, 0.9  # theta and r of the paper
_SMALLEST_ERROR = 0.1  # below it the next step grows no further: at most 7 times
# In log-SNR; in pure noise x_hat hardly changes, and steps would grow until they skip the region that matters.
_FIRST_STEP, _LONGEST_STEP = 0.25, 2.0
_RESOLUTION = 2.0**-6  # the step whose lattice all points of a path use: any step down to 2^-16 has distinct noise


@dataclass(frozen=True)
class AdaptiveSDE(EtaSampler):
    """Two solutions per step, of order 1 and 2, with the same noise; their difference controls the step (alg. 1).

        x'  = (sigma_s / sigma_t) rho x_t + alpha_s (1 - exp(-k)) x_hat_t + noise
        x'' = x' + alpha_s (1 - exp(-k)) (x_hat_m - x_hat_t),    x_m halfway in log-SNR, computed as x'
        E   = rms over a sample of (x'' - x') / (tolerance max(1, |x'|, |x' of the last step|))

    in units where x_t has unit variance. If E <= 1, x'' is the next state; the step is then multiplied by 0.9 E^-0.9
    (eq. 6), and is at most 2. The paper uses improved Euler steps in time; these are exponential steps in log-SNR,
    which are the same on every path and stable at any eta. The second evaluation is halfway, since at the end of a step
    that skips the relevant noise levels x_hat is unchanged, and the error would seem to vanish.

    Each sample has its own times and steps, as in the paper, so it does not depend on the rest of the batch. A rejected
    step is retried on the same Brownian path (`numerics.brownian`); fresh noise after a rejection would favour noise
    that is easy to follow, and bias the law. A step costs two evaluations, a rejected one costs one.

    Args:
        eta: The stochasticity, any value >= 0, or a profile over log-SNR (`NoiseProfile`).
        tolerance: The allowed error per step, relative and absolute, in units where x_t has unit variance.
        max_steps: The number of attempted steps after which the solve fails.
    """

    tolerance: float = 0.05
    max_steps: int = 5000
    order: ClassVar[int] = 2
    is_adaptive: ClassVar[bool] = True
    evaluations_per_step: ClassVar[None] = None

    def __post_init__(self):
        super().__post_init__()
        check_at_least_one(max_steps=self.max_steps)
        if not 0.0 < self.tolerance < 1.0:
            raise UserError(f"tolerance: found {self.tolerance}; must be between 0 and 1, e.g. 0.05")

    def noise_along(self, noise: Noise, schedule: Schedule, grid: Tensor) -> NoiseFunction:
        return noise  # the path is divided as the steps are found

    def integrate(self, denoiser, x, times, noise, cond, callback):
        if self.is_stochastic and not isinstance(noise, Noise):
            raise UserError(
                "noise: an adaptive solver looks its noise up by its place; pass a diffusion.numerics.random.Noise"
            )
        log_snr = denoiser.schedule.log_snr(times)
        # Without a callback only the ends matter.
        stops = (log_snr if callback is not None else log_snr[[0, -1]]).tolist()
        path = _Integration(self, denoiser, cond, noise, x, stops[0])
        for step, stop in enumerate(stops[1:]):
            path.to(stop)
            if callback is not None:
                callback(step, float(times[step + 1]), path.x.clone(), None)
        return path.x


class _Integration:
    """The state of one solve: every sample at its own log-SNR, with its own step."""

    def __init__(self, sampler: AdaptiveSDE, denoiser, cond, noise, x: Tensor, log_snr: float):
        n = len(x)
        self.sampler, self.denoiser, self.cond = sampler, denoiser, cond
        self.noise = noise if sampler.is_stochastic else None
        self.profile = sampler.profile
        self.x = x.clone()
        self.x_hat = torch.empty_like(x)  # at (x, log_snr), if known
        self.size = torch.zeros_like(x)  # |x'| of the last step, in units of unit variance
        self.known = torch.zeros(n, dtype=torch.bool)
        self.log_snr = torch.full((n,), log_snr, dtype=torch.float64)
        self.h = torch.full((n,), _FIRST_STEP, dtype=torch.float64)
        self.point = self._point(self.log_snr)  # of the noise's lattice
        self.tried = 0

    def to(self, stop: float) -> None:
        """Integrate every sample to this log-SNR."""
        while len(rows := torch.nonzero(self.log_snr < stop)[:, 0]):
            self.tried += 1
            if self.tried > self.sampler.max_steps:
                raise SolverError(
                    f"adaptive-sde: gave up after {self.sampler.max_steps} steps at log-SNR "
                    f"{float(self.log_snr.min()):.2f}; use a larger tolerance"
                )
            self._try_a_step(rows, stop)

    def _try_a_step(self, rows: Tensor, stop: float) -> None:
        schedule, there = self.denoiser.schedule, rows.to(self.x.device)
        unknown = rows[~self.known[rows]]
        if len(unknown):
            t = schedule.inverse_log_snr(self.log_snr[unknown])
            self.x_hat[unknown.to(there.device)] = self._ask(self.x[unknown.to(there.device)], t, unknown)
            self.known[unknown] = True
        start, left = self.log_snr[rows], stop - self.log_snr[rows]
        # A step that would leave a tiny remainder takes all of it.
        whole = self.h[rows] > 0.999 * left
        end = torch.where(whole, torch.full_like(left, stop), start + self.h[rows])
        middle = 0.5 * (start + end)
        t, m, s = (schedule.inverse_log_snr(log_snr) for log_snr in (start, middle, end))
        half, full = self.sampler.linear_part(schedule, t, m), self.sampler.linear_part(schedule, t, s)
        (alpha, sigma), (alpha_m, _) = schedule(s), schedule(m)
        x, x_hat = self.x[there], self.x_hat[there]
        point_m, point_s = (torch.maximum(self._point(log_snr), self.point[rows]) for log_snr in (middle, end))
        x_m = self._step(x, x_hat, half, alpha_m, rows, point_m)
        first = self._step(x, x_hat, full, alpha, rows, point_s)
        change, unit = (
            pad_dims_like(value, x).to(x) for value in (-alpha * torch.expm1(-full.decay), torch.hypot(alpha, sigma))
        )
        second = torch.addcmul(first, change, self._ask(x_m, m, rows) - x_hat)
        size = first.abs() / unit
        allowed = self.sampler.tolerance * unit * torch.maximum(size, self.size[there]).clamp(min=1.0)
        off = ((second - first) / allowed).reshape(len(rows), -1)
        error = off.square().mean(1).sqrt().cpu().double()
        if not bool(torch.isfinite(error).all()):
            raise SolverError(f"adaptive-sde: the state is not finite at log-SNR {float(start.min()):.2f}")
        taken = error <= 1.0
        grown = _SAFETY * (end - start) * error.clamp(min=_SMALLEST_ERROR) ** -_EXPONENT
        # A step truncated by the stop says little about the length of the next.
        grown = torch.where(taken & whole, torch.maximum(grown, self.h[rows]), grown)
        self.h[rows] = grown.clamp(max=_LONGEST_STEP)
        done, kept = rows[taken], taken.to(there.device)
        self.x[there[kept]], self.size[there[kept]] = second[kept], size[kept]
        self.log_snr[done], self.point[done], self.known[done] = end[taken], point_s[taken], False

    def _step(self, x: Tensor, x_hat: Tensor, step: EtaSteps, alpha: Tensor, rows: Tensor, point: Tensor) -> Tensor:
        """The exponential step of order 1 of these rows, with the noise up to this point of the lattice."""
        keep, from_x, fresh = (
            pad_dims_like(value, x).to(x) for value in (step.keep, -alpha * torch.expm1(-step.decay), step.fresh)
        )
        moved = (keep * x).addcmul_(from_x, x_hat)
        if self.noise is not None:
            weights = Weights.between(self.point[rows], point)
            moved.addcmul_(fresh, draw(self.noise, self.noise.indices[rows], weights))
        return moved

    def _ask(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        cond = None if self.cond is None else self.cond[rows.to(self.cond.device)]
        return self.denoiser(x, t.to(x.device), cond)

    def _point(self, log_snr: Tensor) -> Tensor:
        return lattice(self.profile.clock(log_snr), torch.full_like(log_snr, _RESOLUTION))
