"""Weightings of the training loss: densities over log-SNR.

Every loss in use is, up to a constant (Kingma and Gao 2023, arXiv 2303.00848),

    L = integral of w(lambda) E ||eps - eps_hat||^2 d lambda

over the log-SNR of the path. A weighting is the function w, scaled to integrate to one, so that any two can be plotted
on one axis. The distribution of training times only affects the variance of the estimate of L.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import WEIGHTINGS
from ..denoisers.denoiser import check_schedule
from ..denoisers.given import positive_number
from ..errors import UserError, choose
from ..schedules.schedule import TRAINED_DATA_END, log_snr_ends

BOUND = ("elbo", "likelihood")  # the variational bound by two names

Weighting = Callable[[Tensor], Tensor]


def weighting(name: str, schedule: Any, sigma_data: Any = 1.0, min_snr_gamma: Any = 5.0) -> Weighting:
    """Make a weighting, w(lambda), that integrates to one over the path.

    Args:
        name: `simple`: ||eps - eps_hat||^2 at uniform times (Ho et al. 2020, eq. 14).
            `elbo`: w = 1, the variational bound of the continuous-time model (VDM, arXiv 2107.00630, eq. 17).
            `likelihood`: g(t)^2 on the score's error (Song et al. 2021, arXiv 2101.09258, eq. 7). Because
            g^2 ||score error||^2 dt = ||eps - eps_hat||^2 |d lambda|, this is `elbo` under another name.
            `min-snr`: `simple` with the weight of the error of x_hat capped at gamma (arXiv 2303.09556).
            `edm`: Karras et al. 2022 (arXiv 2206.00364, eq. 8 and table 1), whose times are part of the weighting.
        schedule: The path.
        sigma_data: The data's standard deviation (edm).
        min_snr_gamma: The cap (min-snr).

    Raises:
        UserError: For an unknown name; for a weight that cannot be scaled to integrate to one; for a learned schedule
            with a weighting other than the bound's, the only one whose value does not depend on the schedule.
    """
    choose("objective.weighting", name, WEIGHTINGS)
    check_schedule(schedule)
    sigma_data = positive_number("denoiser.sigma_data", sigma_data)
    min_snr_gamma = positive_number("objective.min_snr_gamma", min_snr_gamma)
    if schedule.is_learned and name not in BOUND:
        raise UserError(f"objective.weighting: found '{name}'; a learned schedule takes {' or '.join(BOUND)}")

    def unnormalised(log_snr: Tensor) -> Tensor:
        if name in BOUND:
            return torch.ones_like(log_snr)
        if name == "edm":
            # ln(sigma) ~ N(-1.2, 1.2^2) and (sigma^2 + sigma_data^2) / sigma_data^2 on the error of eps_hat
            return torch.exp(-0.5 * ((log_snr - 2.4) / 2.4) ** 2) * (torch.exp(-log_snr) / sigma_data**2 + 1.0)
        density = schedule.time_density(log_snr)
        if name == "min-snr":
            return density * (min_snr_gamma * torch.exp(-log_snr)).clamp(max=1.0)
        return density

    low, high = log_snr_ends(schedule)
    if high > TRAINED_DATA_END:
        raise UserError(
            f"schedule: the data end of {schedule} is at log-SNR {high:.4g}; float32, in which networks are trained, "
            f"distinguishes noise from none up to {TRAINED_DATA_END:.0f} (log_snr_max, sigma_min or beta_start)"
        )
    grid = torch.linspace(low, high, 20001, dtype=torch.float64)
    total = float(torch.trapezoid(unnormalised(grid), grid))
    if not (math.isfinite(total) and total > 0.0):
        raise UserError(f"objective.weighting: '{name}' has no integral over the path of {schedule}; accepted: elbo")
    return lambda log_snr: unnormalised(log_snr) / total
