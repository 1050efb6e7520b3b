"""The training loss: denoising error, weighted over log-SNR, estimated at random times.

    loss = w(lambda) / p(lambda) * ||eps - eps_hat||^2 / D,    lambda ~ p

is unbiased for the integral of w(lambda) E||eps - eps_hat||^2 / D for any p (see `weightings`). The error of eps_hat is
exp(lambda / 2) times the error of x_hat, so the loss is the same for every prediction of the network.

If the schedule is learned, its density p of uniform times is trained to minimise the variance of the loss, whose mean
does not depend on it (VDM, Kingma et al. 2021, arXiv 2107.00630, app. I.2), i.e. its second moment, the integral of
(w e)^2 / p d lambda with e the error above. At a given log-SNR neither w nor e depends on the schedule, so

    grad E[loss^2] = - E[loss^2 grad log p(lambda)]

which needs only the losses: unlike VDM's gradient, it does not pass through x_t, the noise level and the whole network,
takes the same single backward pass, and cannot mix with the network's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.denoiser import denoiser_of
from ..denoisers.given import can_be_looked_at, reals, tensor_of
from ..errors import UserError
from ..schedules import Schedule
from ..schedules.forward_process import diffuse
from .time_sampling import TimeDistribution, evenly_spaced
from .uncertainty import Uncertainty

# Scale of the gradient of a learned schedule. Adam's step does not depend on it; it is so small that the norm of the
# full gradient, which is clipped, is that of the network.
SCHEDULE_SCALE = 1e-3


@dataclass(frozen=True)
class Losses:
    """The per-sample losses of a batch, each of shape (B,).

    Attributes:
        weighted: The training loss, w / p ||eps - eps_hat||^2 / D, or that of a learned weighting (`Uncertainty`).
        eps_error: ||eps - eps_hat||^2 / D, unweighted.
        log_snr: The log-SNR at which each was evaluated.
        schedule: Zeros, whose gradient in the parameters of a learned schedule is that of weighted^2. No gradient if
            the schedule is fixed.
    """

    weighted: Tensor
    eps_error: Tensor
    log_snr: Tensor
    schedule: Tensor

    def mean(self) -> Tensor:
        """The loss to minimise, a scalar: the mean of `weighted`, with the gradient of a learned schedule."""
        return self.weighted.mean() + SCHEDULE_SCALE * self.schedule.mean()


@dataclass(frozen=True)
class Objective:
    """A weighting and a distribution of times.

        loss = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
        loss(denoiser, x).mean().backward()

    Args:
        weighting: w(lambda), a `Weighting`, see `weightings.weighting`; or an `Uncertainty`, which is trained along.
        times: The distribution of training times, a `TimeDistribution`.

    Raises:
        UserError: For the names of either, which are made with the path.
    """

    weighting: Any
    times: Any

    def __post_init__(self):
        if not callable(self.weighting):
            raise UserError(f"weighting: found {self.weighting!r}; needs a function of log-SNR, weighting(name, path)")
        if not isinstance(self.times, TimeDistribution):
            raise UserError(f"times: found {self.times!r}; needs a distribution of times, time_distribution(name)")

    def __call__(
        self,
        denoiser: Any,
        x: Any,
        u: Any = None,
        eps: Any = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """The losses of clean data x at random times, with random noise; both can be passed.

        Args:
            denoiser: The denoiser in training, or a diffusion model.
            x: Clean data, shape (B, *shape); images in [-1, 1].
            u: Uniforms in (0, 1) that determine the times, float64 (B,); by default drawn, evenly spaced over the
                batch with one common shift (`draw_u`).
            eps: Standard normals of the shape of x; by default drawn.
            cond: Class labels, shape (B,), another condition of the network, or None.
            generator: The random generator; by default torch's, of x's device.

        Raises:
            UserError: For level indices instead of real values, shapes that do not agree, and a u outside (0, 1).
        """
        if not isinstance(getattr(denoiser, "schedule", None), Schedule):  # a compiled denoiser has one
            denoiser = denoiser_of("denoiser", denoiser)
        x = reals("x", x)
        if x.ndim == 0:
            raise UserError("x: found one number; needs a batch of samples, (B, *shape)")
        where = x.device if generator is None else generator.device
        if u is None:
            shift = torch.rand(1, generator=generator, device=where, dtype=torch.float64)
            u = evenly_spaced(shift, torch.arange(len(x), device=where), len(x)).to(x.device)
        if eps is None:
            eps = torch.randn(x.shape, generator=generator, device=where, dtype=x.dtype).to(x.device)
        u = u if isinstance(u, Tensor) else tensor_of("u", u).double()
        eps = reals("eps", eps)
        if eps.shape != x.shape or u.shape != x.shape[:1]:
            raise UserError(
                f"x, u, eps: found shapes {tuple(x.shape)}, {tuple(u.shape)} and {tuple(eps.shape)}; "
                "the noise has the shape of x, and u is one number a sample"
            )
        if can_be_looked_at(u) and not bool(((u >= 0.0) & (u <= 1.0)).all()):
            raise UserError(f"u: found {float(u.min()):g} to {float(u.max()):g}; needs uniforms in (0, 1)")
        schedule = denoiser.schedule
        log_snr = self.times.log_snr(schedule, u)
        t = schedule.inverse_log_snr(log_snr)
        x_hat = denoiser(diffuse(schedule, x, t, eps), t, cond)
        datum_error = (x_hat - x).flatten(1).pow(2).mean(1)
        density = self.times.density(schedule, log_snr)
        eps_error = torch.exp(log_snr) * datum_error
        if isinstance(self.weighting, Uncertainty):
            weighted = self.weighting.loss(log_snr, eps_error)
        else:
            weighted = self.weighting(log_snr) / density.detach() * eps_error
        # the gradient of density.detach() / density is that of -log density
        for_schedule = weighted.detach() ** 2 * (density.detach() / density - 1.0)
        return Losses(weighted.to(x.dtype), eps_error.detach().to(x.dtype), log_snr, for_schedule)
