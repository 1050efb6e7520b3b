"""Where draws and likelihoods begin on a path that does not end in noise: a Gaussian fitted to data.

With data of mean m and covariance C, x_t has the mean alpha m and the covariance alpha^2 C + sigma^2 I, whatever their
law. A path whose last level keeps signal (alphas_cumprod_T = 0.13, say) does not end in N(0, (alpha^2 + sigma^2) I),
from which it is drawn by default; the Gaussian of these moments is as near to x_t as any Gaussian (in KL(p || .)), and
the law of x_t itself where the data are Gaussian. Any start that does not depend on the data measured leaves a bound a
bound, and a flow's density that of what the flow draws from it.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, choose
from ..numerics.arrays import REFUSED, as_tensor, described
from .schedule import Schedule

COVARIANCES = ("diagonal", "full")


class FittedStart:
    """The law N(alpha m, alpha^2 C + sigma^2 I) of x_t.

    Args:
        mean: m, of the shape of one sample.
        covariance: C of the flattened sample, (D, D); or the variances, of the shape of one sample.
        of: What it was fitted to, where that distinguishes it from others; None: these numbers.

    Raises:
        UserError: For what is no real numbers, shapes that do not fit, and a covariance that is none.
    """

    def __init__(self, mean: Any, covariance: Any, of: Any = None):
        self.mean, covariance = _reals("mean", mean), _reals("covariance", covariance)
        self._digest = _digest(*((self.mean, covariance) if of is None else (as_tensor(of),)))
        dims = self.mean.numel()
        self.basis: Tensor | None = None
        if covariance.shape == self.mean.shape:
            self.variances = covariance.reshape(-1)
        elif covariance.shape == (dims, dims):
            variances, self.basis = torch.linalg.eigh(covariance)
            # rounding, where fewer data than dimensions span it
            self.variances = torch.where(variances.abs() < 1e-9 * variances[-1:].abs(), 0.0, variances)
        else:
            raise UserError(
                f"covariance: found shape {tuple(covariance.shape)}; needs {tuple(self.mean.shape)}, variances, "
                f"or ({dims}, {dims})"
            )
        if not bool((self.variances >= 0).all()) or not bool(torch.isfinite(self.mean).all()):  # also refuses nan
            raise UserError("mean, covariance: are not those of data: a variance below zero, or no number")

    @classmethod
    def of(cls, x: Any, covariance: str = "diagonal", images: Any = None) -> FittedStart:
        """That of data as the denoiser sees them: held out, and not those that are measured.

        Args:
            x: Real numbers, shape (N, *shape), two or more; `model.fitted_start` also takes images of levels.
            covariance: `diagonal`, the variance of each coordinate, or `full`, which takes more data than dimensions.
            images: The same data as they are stored, which tell the start from others; None: x.

        Raises:
            UserError: For too few data, and levels.
        """
        choose("covariance", covariance, COVARIANCES)
        images, x = x if images is None else images, _reals("images", x)
        if not x.ndim:
            raise UserError("images: found one number; needs shape (N, *shape)")
        n, dims = len(x), x[:1].numel()
        if n < 2 or (covariance == "full" and n <= dims):
            needs = f"more than {dims}, its dimensions; or covariance='diagonal'" if covariance == "full" else "two"
            raise UserError(f"images: found {n}; a start of {covariance} covariance needs {needs}")
        mean = x.mean(0)
        if covariance == "diagonal":
            return cls(mean, (x - mean).square().mean(0), images)
        rows = (x - mean).flatten(1)
        return cls(mean, rows.mT @ rows / n, images)

    def __repr__(self) -> str:
        """What distinguishes it from others, for protocols: its kind, and a digest of what it was fitted to.

        Its own numbers are rounded otherwise on another machine, or with other threads.
        """
        return f"FittedStart({'diagonal' if self.basis is None else 'full'}, sha256={self._digest[:12]})"

    def _at(self, schedule: Schedule, t: Any) -> tuple[float, float, Tensor]:
        """alpha and sigma, and the variances of x_t along the axes."""
        alpha, sigma = (float(value) for value in schedule(torch.as_tensor(t, dtype=torch.float64)))
        return alpha, sigma, alpha**2 * self.variances + sigma**2

    def _along(self, x: Tensor) -> Tensor:
        """Coordinates along the axes, float64 (B, D), of data on the CPU."""
        flat = x.flatten(1).cpu().double()
        return flat if self.basis is None else flat @ self.basis

    def draw(self, schedule: Schedule, t: Any, eps: Float[Tensor, " b *dims"]) -> Float[Tensor, " b *dims"]:
        """x_t from standard normals: alpha m + (alpha^2 C + sigma^2 I)^(1/2) eps, on their device."""
        alpha, _, variances = self._at(schedule, t)
        along = self._along(eps) * variances.sqrt()
        x = (along if self.basis is None else along @ self.basis.mT).reshape(eps.shape) + alpha * self.mean
        return x.to(dtype=eps.dtype).to(eps.device)

    def log_prob(self, schedule: Schedule, t: Any, x_t: Float[Tensor, " b *dims"]) -> Float[Tensor, " b"]:
        """The log-density of x_t in nats, float64 (B,), on the CPU."""
        alpha, _, variances = self._at(schedule, t)
        off = self._along(x_t.cpu() - alpha * self.mean)
        return -0.5 * (off.square() / variances + (2.0 * math.pi * variances).log()).sum(1)

    def divergence(
        self, schedule: Schedule, t: Any, x: Float[Tensor, " b *dims"], spread: float = 0.0
    ) -> Float[Tensor, " b"]:
        """KL(q(x_t | x) || this), float64 (B,), on the CPU.

        Args:
            schedule, t: Where.
            x: Clean data.
            spread: The variance of each coordinate around x over which the mean is taken.
        """
        alpha, sigma, variances = self._at(schedule, t)
        off = self._along(x.cpu() - self.mean).square() + spread
        ratio = sigma**2 / variances
        return 0.5 * (alpha**2 * off / variances + ratio - 1.0 - ratio.log()).sum(1)


def _digest(*values: Tensor) -> str:
    """The SHA-256 of tensors, in order."""
    found = hashlib.sha256()
    for value in values:
        found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _reals(name: str, value: Any) -> Tensor:
    """Real numbers as float64, on the CPU."""
    try:
        found = as_tensor(value).detach()
    except REFUSED:
        raise UserError(f"{name}: found {described(value)}; needs a tensor or an array of real numbers") from None
    if not found.is_floating_point():
        levels = "; model.fitted_start takes images of levels" if name == "images" else ""
        raise UserError(f"{name}: found {found.dtype}; needs real numbers{levels}")
    return found.cpu().double()


def check_start(start: Any, shape: tuple[int, ...]) -> FittedStart:
    """The start itself.

    Raises:
        UserError: For anything else, and one of data of another shape.
    """
    if not isinstance(start, FittedStart):
        raise UserError(f"fitted_start: found a {type(start).__name__}; needs one of model.fitted_start(images)")
    if tuple(start.mean.shape) != tuple(shape):
        raise UserError(f"fitted_start: found one of data {tuple(start.mean.shape)}; the model's are {tuple(shape)}")
    return start
