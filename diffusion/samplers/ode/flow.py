"""The probability-flow ODE in variables in which every path is the same.

In z = x_t / sqrt(alpha_t^2 + sigma_t^2) and phi = arctan(sigma_t / alpha_t), any path is
z = cos(phi) x + sin(phi) eps, and the probability-flow ODE (`samplers.sde.sde`) is

    dz / dphi = cos(phi) eps_hat - sin(phi) x_hat,        phi = pi/2: noise, phi = 0: data,

the v-prediction, without derivatives of the schedule. A solver of this ODE gives the same result for the same process
under any schedule, and its tolerance means the same on every path. Among eight time variables phi also needs the fewest
evaluations at equal error (docs/architecture.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...denoisers.denoiser import Denoiser
from ...errors import SolverError
from ...numerics.broadcasting import pad_dims_like
from ...schedules import Schedule


def angle(schedule: Schedule, t: Tensor) -> Tensor:
    """phi = arctan(sigma_t / alpha_t), the solver's time variable."""
    return torch.atan(torch.exp(-0.5 * schedule.log_snr(t)))


def angle_from_noise(schedule: Schedule, t: Tensor) -> Tensor:
    """phi - pi/2, which float32 resolves near the noise end, where phi itself rounds to pi/2."""
    return -torch.atan(torch.exp(0.5 * schedule.log_snr(t)))


def scale(schedule: Schedule, t: Tensor) -> Tensor:
    """sqrt(alpha_t^2 + sigma_t^2): one unit of z in units of x_t."""
    return torch.hypot(*schedule(t))


class ProbabilityFlow:
    """dz / dphi of the probability-flow ODE of a denoiser, with its evaluations counted, capped and checked.

    Args:
        denoiser: The denoiser.
        cond: Class labels, shape (B,), or None.
        max_evaluations: The number of evaluations after which the solve fails.
    """

    def __init__(self, denoiser: Denoiser, cond: Any = None, max_evaluations: int = 5000):
        self.denoiser = denoiser
        self.cond = cond
        self.max_evaluations = max_evaluations
        self.evaluations = 0

    def __call__(self, phi: Tensor, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """dz / dphi at angle phi () or (B,) and state z (B, *shape).

        `rows` are the indices of the states in the batch if they are a subset: they select the labels.

        Raises:
            SolverError: If the cap is exceeded or the denoiser's output is not finite; names the noise level.
        """
        self.evaluations += 1
        log_snr = -2.0 * torch.log(torch.tan(phi.detach().to(device="cpu", dtype=torch.float64)))
        if self.evaluations > self.max_evaluations:
            raise SolverError(
                f"ode: gave up after {self.max_evaluations} evaluations at log-SNR {float(log_snr.min()):.2f}; "
                "use a larger tolerance or a fixed-step method"
            )
        schedule = self.denoiser.schedule
        t = schedule.inverse_log_snr(log_snr)
        r = scale(schedule, t)
        if phi.ndim:
            t, r = t.to(z.device), pad_dims_like(r.to(z.device), z)
        else:
            r = float(r)
        cond = self.cond if self.cond is None or rows is None else self.cond[rows]
        velocity = self.denoiser.v(r * z, t, cond) / r
        if not bool(torch.isfinite(velocity).all()):
            raise SolverError(f"ode: the denoiser's output is not finite at log-SNR {float(log_snr.min()):.2f}")
        return velocity


def adaptive_options(phi: Tensor) -> dict[str, object]:
    """torchdiffeq's options for an adaptive solve over the angles `phi`.

    The first step is ours and the last one stops at the end: torchdiffeq's guess for the first, and its stepping over
    the end and interpolating back, would evaluate beyond the end of the path, where lambda is infinite.
    """
    return {"norm": largest_sample_rms, "first_step": float((phi[-1] - phi[0]).abs()) / 50.0, "step_t": phi[[-1]]}


def largest_sample_rms(rows: Tensor) -> Tensor:
    """The error norm of a batch (B, D): the largest root mean square of its samples.

    An average over the batch would let easy samples hide the error of a hard one.
    """
    return rows.pow(2).mean(dim=1).sqrt().max()
