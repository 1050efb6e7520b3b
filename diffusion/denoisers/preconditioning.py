"""Preconditioning: scalings that give the network's input and target unit variance at every noise level.

Karras et al. 2022 (arXiv 2206.00364, sec. 5 and table 1), written for any path: with s = sigma / alpha,

    D(x_t) = c_skip (x_t / alpha) + c_out F(c_in x_t, c_noise)
    c_skip = sigma_data^2 / (s^2 + sigma_data^2)      c_out = s sigma_data / sqrt(s^2 + sigma_data^2)
    c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2)   c_noise = lambda / 4 = -log(s) / 2

The first three are the paper's. Its c_noise is ln(s) / 4, which is -1/2 of ours: a network trained with the paper's
needs -c_noise / 2.

c_in and c_noise are used for every prediction: on a variance-preserving path with sigma_data = 1, c_in = 1 as in DDPM.
The network is conditioned on log-SNR, not on time, so c_noise means the same on every path.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .predictions import PathPoint, linear

# Beyond it, x_t is indistinguishable from clean data or pure noise, and an embedding need not distinguish noise levels.
C_NOISE_LIMIT = 5.0


def c_in(at: PathPoint, sigma_data: float) -> Any:
    """The factor that gives c_in x_t unit variance for data of standard deviation `sigma_data`."""
    return ((at.alpha * sigma_data) ** 2 + at.sigma**2) ** -0.5


def c_noise(log_snr: Tensor) -> Tensor:
    """The network's noise-level input: log-SNR / 4, clipped to [-5, 5]; -2 times that of Karras et al., table 1."""
    return (0.25 * log_snr).clamp(-C_NOISE_LIMIT, C_NOISE_LIMIT)


def edm_to_x(raw: Tensor, x_t: Tensor, at: PathPoint, sigma_data: float) -> Tensor:
    """D(x_t) from the raw network: c_skip x_t / alpha + c_out F."""
    scaled = (at.alpha * sigma_data) ** 2 + at.sigma**2
    c_skip = at.alpha * sigma_data**2 / scaled  # multiplies x_t itself: the 1 / alpha of c_skip x_t / alpha is in it
    c_out = at.sigma * sigma_data / scaled**0.5
    return linear(c_skip, x_t, c_out, raw)


def x_to_edm(x: Tensor, x_t: Tensor, at: PathPoint, sigma_data: float) -> Tensor:
    """The raw network output that `edm_to_x` turns into `x`."""
    scaled = (at.alpha * sigma_data) ** 2 + at.sigma**2
    return (x - at.alpha * sigma_data**2 / scaled * x_t) * scaled**0.5 / (at.sigma * sigma_data)
