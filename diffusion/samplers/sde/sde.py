"""The SDEs of a path, from its schedule alone (Song et al. 2021, arXiv 2011.13456).

The forward process with marginals x_t = alpha_t x + sigma_t eps is dx = f x dt + g dw with

    f = d log alpha / dt,    g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d lambda / dt.

Fokker-Planck: dp/dt = -div(f x p) + g^2/2 lap p. Because lap p = div(p score), any part of the diffusion can be traded
for drift: for every eta >= 0,

    dx = [ f x - (1 + eta^2)/2 g^2 score ] dt + eta g dw

run from t = 1 to 0 has the marginals of the forward process: eta = 0 is the probability-flow ODE (eq. 13), eta = 1 the
reverse SDE (eq. 6). The derivation does not assume a constant eta: it may depend on time.
"""

from __future__ import annotations

from torch import Tensor

from ...denoisers.denoiser import Denoiser
from ...numerics.broadcasting import pad_dims_like
from ...schedules import Schedule


def drift(schedule: Schedule, t: Tensor) -> Tensor:
    """f(t): the forward SDE's drift is f x."""
    return schedule.d_log_alpha(t)


def diffusion_squared(schedule: Schedule, t: Tensor) -> Tensor:
    """g^2(t), the square of the forward SDE's diffusion coefficient."""
    _, sigma = schedule(t)
    return -(sigma**2) * schedule.d_log_snr(t)


def reverse_drift(denoiser: Denoiser, x_t: Tensor, t: Tensor, eta: float = 1.0, cond: Tensor | None = None) -> Tensor:
    """The drift f x - (1 + eta^2)/2 g^2 score of the reverse process with stochasticity `eta`, shape of x_t."""
    f = pad_dims_like(drift(denoiser.schedule, t), x_t)
    g2 = pad_dims_like(diffusion_squared(denoiser.schedule, t), x_t)
    score = denoiser.score(x_t, t, cond)
    return (f * x_t - (0.5 * (1.0 + eta**2)) * g2 * score).to(x_t.dtype)


def probability_flow(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """The velocity of the probability-flow ODE, f x - g^2 score / 2 (equal to `denoiser.velocity`)."""
    return reverse_drift(denoiser, x_t, t, 0.0, cond)
