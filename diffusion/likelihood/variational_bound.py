"""Evidence lower bounds of a diffusion model, in continuous and in discrete time, with every term.

Continuous (Kingma et al. 2021, arXiv 2107.00630, eq. 11-17), with the integral over the log-SNR lambda:

    log P(x) >= E log p(x | x_0) - 1/2 integral of E||eps - eps_hat(x_lambda)||^2 dlambda - KL(q(x_1 | x) || p(x_1))

x_0 and x_1 are x_t at t_min and t_max, p(x_1) = N(0, prior_std^2 I), and p(x | x_0) is the decoder over grey levels
(`Dequantizer.level_log_prob`), or N(x_0 / alpha, (sigma / alpha)^2 I) for continuous data. The images are at their bin
centres, without dequantisation. The integral does not depend on the path between its ends (sec. 5.1). It is taken in
lambda, where it also shows which noise levels the nats go to (`terms["curve"]`), and relative to a Gaussian whose
integral is known (`gaussian_reference`, the density of noise levels and the control variate of I-MMSE), which keeps it
unbiased. At 64 noise levels that divides the noise by 4.1, 3.4 and 1.6 on mixtures in 192 dimensions of standard
deviation 0.2, 0.08 and 0.01, by 5.4 in the plane, and by 2.3 for the shipped digits.

Discrete, for T steps t_0 = t_min < ... < t_T = t_max (Ho et al. 2020, arXiv 2006.11239, eq. 5): the integral becomes
sum_i KL(q(x_s | x_t, x) || p(x_s | x_t)) for s = t_{i-1}, t = t_i, between Gaussians. The model's mean is q's with
x_hat for x; its variance is q's own (`lower`) or that for unit-variance data (`upper`; DDPM's beta).

Draws are stratified: K noise levels per image, one in each of K equal strata (or all T steps); see
`batching.stratified_positions`. If images are dequantised, each noise level has its own draw of u (the sum is linear),
so the standard error includes both; the prior's expectation over u is in closed form. The decoder over grey levels is
averaged over four draws of x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..denoisers.given import tensor_of
from ..errors import UserError, check_at_least_one, choose
from ..numerics import random
from ..numerics.broadcasting import pad_dims_like
from ..samplers.ancestral import LEARNED
from ..schedules import Schedule
from ..schedules.fitted_start import check_start
from ..schedules.forward_process import diffuse, posterior, variance_for_unit_data
from ..schedules.schedule import log_snr_ends
from .batching import (
    Batch,
    Batches,
    Points,
    Values,
    as_function,
    dims_of,
    in_batches,
    protocol_of,
    squares,
    stratified_error,
    stratified_positions,
)
from .dequantization import Dequantizer
from .estimate import Estimate, mean_error
from .gaussian_reference import REFERENCES, GaussianReference

VARIANCES = ("lower", "upper", LEARNED)
# Noise is drawn at step i for evaluation i, that of the strata at 2^31; this step differs from all of them.
_STEP_DECODER, _DECODER_DRAWS = 2**31 + 1, 4
# The standard error of a batch's images, among its terms.
_NOISE = "noise"


@dataclass(frozen=True)
class ContinuousBound:
    """The continuous-time evidence lower bound.

    Args:
        evaluations: The number K of noise levels per image, one network evaluation each; a standard error needs 3 or
            more.
        bins: The bins of equal width in log-SNR of the curve.
        log_snr_max: Where the path ends and the decoder takes over, by default at t_min. The bound holds for any value.
            A model unaware of the discretisation loses half a nat per dimension for each unit of log-SNR beyond the
            width w of a bin: for it, 2 log(2.5 / w) is near the optimum (measured at 17 and 256 grey levels: within
            0.03 bits/dim of the ODE's bound, where w / 6 costs 0.5). A model that has learned it loses by an early end.
        reference: `gaussian`, or `none` for uniform noise levels without control variate, as for figures whose protocol
            has no `reference`: the same expectation, with more noise.
        dequantize: Evaluate uniformly dequantised images, as required for a model trained on them: the bound is that of
            their density, log P >= E_u ELBO(x + u) + D log w, with the path's Gaussian as decoder.
        fitted_start: p(x_1), a `schedules.FittedStart`; None: N(0, prior_std^2 I).
    """

    evaluations: int = 64
    bins: int = 24
    log_snr_max: float | None = None
    reference: str = "gaussian"
    dequantize: bool = False
    fitted_start: Any = None

    def __post_init__(self):
        check_at_least_one(evaluations=self.evaluations, bins=self.bins)
        choose("reference", self.reference, REFERENCES)

    def __call__(
        self, denoiser: Denoiser, images: Tensor, batches: Batches, dequantizer: Dequantizer | None = None
    ) -> Estimate:
        """Measure level indices (uint8), or continuous data without a dequantizer, shape (B, *shape).

        Returns:
            Kind `lower bound`; terms in nats: `prior`, `diffusion`, `reconstruction`, shape (B,), which add up to
            log_prob; `steps` (B, K), the strata of `diffusion` from the lowest log-SNR; and `curve` (B, bins), which
            also adds up to it, in bins of equal width between the two log-SNRs of `protocol["curve_log_snr"]`.

        Raises:
            UserError: For an end that leaves no path, or images that do not fit the model.
        """
        schedule, seed = denoiser.schedule, batches.seed
        low, high = log_snr_ends(schedule)
        t_min, end = schedule.t_min, self.log_snr_max
        if end is not None and end < high:
            high, t_min = end, float(schedule.inverse_log_snr(torch.tensor(end, dtype=torch.float64)))
        if not low < high:
            raise UserError(f"log_snr_max: found {high}; the path starts at {low:.2f}, and it must be above")
        edges = torch.linspace(low, high, self.bins + 1, dtype=torch.float64)
        dims = math.prod(denoiser.shape)

        def diffusion(batch: Batch, points: Points) -> dict[str, Tensor]:
            def at(i: int, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                x, t = points(i), schedule.inverse_log_snr(log_snr)
                t, eps = t.to(x.device), _normal(seed, batch.keys, i, x)
                return x, eps, squares(eps - denoiser.eps(diffuse(schedule, x, t, eps), t, batch.cond))

            square = points.mean_square()
            against = GaussianReference(square, dims, low, high, seed, batch.keys, self.evaluations, self.reference)
            _, drawn = against.differences(at)
            curve = -against.integrals(edges)
            curve.scatter_add_(1, (torch.searchsorted(edges, against.log_snr) - 1).clamp(0, self.bins - 1), drawn)
            return {"steps": drawn - against.integrals(against.strata()), "curve": curve, _NOISE: against.error(drawn)}

        protocol = {"estimator": "ELBO, continuous time", "evaluations": self.evaluations}
        protocol |= {"curve_log_snr": [low, high], "reference": self.reference}
        ends = t_min, schedule.t_max
        start = self.fitted_start
        return _bound(denoiser, images, batches, dequantizer, self.dequantize, diffusion, ends, protocol, start)


@dataclass(frozen=True, eq=False)
class DiscreteBound:
    """The evidence lower bound of the ancestral sampler with T steps.

    Args:
        times: The T + 1 times of the sampler in either order, 0 < t <= 1; the decoder acts at the smallest. By default
            `discrete_times`.
        variance: The model's variance: `lower` (that of q(x_s | x_t, x)), `upper` (that for unit-variance data), or
            `learned`: between them, where the network places it (`Denoiser.with_variance`).
        evaluations: The number K of steps drawn per image, one in each of K equal strata; None uses all T.
        dequantize: As `ContinuousBound`.
        steps: T, if no times are given; 1000 by default.
        fitted_start: As `ContinuousBound`.
    """

    times: Any = None
    variance: str = "lower"
    evaluations: int | None = None
    dequantize: bool = False
    steps: int | None = None
    fitted_start: Any = None

    def __post_init__(self):
        choose("variance", self.variance, VARIANCES)
        if self.times is not None and self.steps is not None:
            raise UserError("times, steps: give one of them")
        given = {"evaluations": self.evaluations, "steps": self.steps}
        check_at_least_one(**{name: value for name, value in given.items() if value is not None})

    def __call__(
        self, denoiser: Denoiser, images: Tensor, batches: Batches, dequantizer: Dequantizer | None = None
    ) -> Estimate:
        """As `ContinuousBound`.

        Returns:
            Kind `lower bound`; terms in nats: `prior`, `diffusion`, `reconstruction`, shape (B,), which add up to
            log_prob, and `steps` (B, K), the parts of `diffusion` in order of increasing noise.
        """
        schedule, seed = denoiser.schedule, batches.seed
        times = discrete_times(schedule, self.steps or 1000) if self.times is None else tensor_of("times", self.times)
        times = times.to(device="cpu", dtype=torch.float64).sort().values
        steps = len(times) - 1
        if steps < 1 or float(times[0]) <= 0 or not bool((times.diff() > 0).all()):
            raise UserError(f"times: needs two or more distinct times above 0; found {times.tolist()[:8]}")
        if self.evaluations is not None and self.evaluations > steps:
            raise UserError(f"evaluations: found {self.evaluations}; there are only {steps} steps")
        s_all, t_all = times[:-1], times[1:]
        q = posterior(schedule, t_all, s_all)
        upper = variance_for_unit_data(schedule, t_all, s_all)
        model_variance = upper if self.variance == "upper" else q.variance
        ratio = q.variance / model_variance
        # KL between Gaussians: offset + factor ||x - x_hat||^2
        offset = 0.5 * math.prod(denoiser.shape) * (ratio - 1.0 - ratio.log())
        factor = 0.5 * q.from_x.square() / model_variance
        count = steps if self.evaluations is None else self.evaluations

        def diffusion(batch: Batch, points: Points) -> dict[str, Tensor]:
            step = torch.arange(steps).expand(len(batch.keys), -1)
            if self.evaluations is not None:
                step = (stratified_positions(seed, batch.keys, count) * steps).long().clamp(max=steps - 1)
            values: list[Tensor] = []
            for i in range(count):
                x = points(i)
                t = t_all[step[:, i]].to(x.device)
                x_t = diffuse(schedule, x, t, _normal(seed, batch.keys, i, x))
                if self.variance == LEARNED:
                    x_hat, place = denoiser.with_variance(x_t, t, batch.cond)
                    log_ratio = place * pad_dims_like((q.variance / upper).log()[step[:, i]].to(x), x)
                    error = pad_dims_like(factor[step[:, i]].to(x), x) * (x - x_hat).square() * log_ratio.exp()
                    values.append((0.5 * (torch.expm1(log_ratio) - log_ratio) + error).double().flatten(1).sum(1))
                else:
                    values.append(squares(x - denoiser(x_t, t, batch.cond)))
            found = torch.stack(values, dim=1).cpu()
            kl = found if self.variance == LEARNED else offset[step] + factor[step] * found
            steps_of = -kl * (steps / count)
            return {"steps": steps_of, _NOISE: stratified_error(steps_of)}

        protocol = {"estimator": "ELBO, discrete time", "times": times.tolist()}
        protocol |= {"variance": self.variance, "evaluations": count}
        ends, start = (float(times[0]), float(times[-1])), self.fitted_start
        return _bound(denoiser, images, batches, dequantizer, self.dequantize, diffusion, ends, protocol, start)


elbo_continuous = as_function("elbo_continuous", ContinuousBound, of_levels=True)
elbo_discrete = as_function("elbo_discrete", DiscreteBound, of_levels=True)


def discrete_times(schedule: Schedule, steps: int) -> Float[Tensor, " t"]:
    """steps + 1 times uniform in log-SNR between the ends of the path, for `elbo_discrete`."""
    check_at_least_one(steps=steps)
    low, high = log_snr_ends(schedule)
    return schedule.inverse_log_snr(torch.linspace(low, high, steps + 1, dtype=torch.float64))


def _bound(
    denoiser: Denoiser,
    images: Tensor,
    batches: Batches,
    dequantizer: Dequantizer | None,
    dequantize: bool,
    diffusion: Callable[[Batch, Points], dict[str, Tensor]],
    ends: tuple[float, float],
    protocol: dict[str, object],
    start: Any = None,
) -> Estimate:
    """The three terms together; `diffusion` gives a batch's strata, and more."""
    if dequantizer is None and not images.is_floating_point():
        raise UserError(f"images: found {images.dtype} for continuous data; pass a dequantizer for levels")
    schedule, dims, seed = denoiser.schedule, dims_of(denoiser, images), batches.seed
    levels = None if dequantizer is None else dequantizer.levels
    if dequantize and dequantizer is None:
        raise UserError("dequantize: continuous data are not; leave it out")
    # The decoder over grey levels; for continuous or dequantised x the decoder is the path's Gaussian.
    of_levels = None if dequantize else dequantizer
    jacobian = dequantizer.log_jacobian(dims) if dequantize and dequantizer is not None else 0.0
    decoder = "Gaussian" if of_levels is None else "Gaussian, normalised over the levels"
    protocol = {**protocol, **protocol_of(denoiser), "t_min": ends[0], "t_max": ends[1]}
    dequantization = "uniform" if dequantize else None
    protocol |= {"decoder": decoder, "dequantization": dequantization, "levels": levels, "seed": seed}
    start = None if start is None else check_start(start, tuple(denoiser.shape))
    protocol |= {} if start is None else {"fitted_start": repr(start)}
    decoder_errors = []

    def evaluate(batch: Batch) -> Values:
        points = Points(batch, dequantizer, dequantize, seed)
        parts = diffusion(batch, points)
        noise = parts.pop(_NOISE)
        if start is None:
            prior = -_prior_kl(schedule, points.mean_square(), dims, ends[1])
        else:
            prior = -start.divergence(schedule, ends[1], *points.middle())
        if of_levels is None:  # E over x_0 in closed form: the entropy of the Gaussian
            decoded = torch.full_like(
                prior, -0.5 * dims * (math.log(2.0 * math.pi * _noise(schedule, ends[0]) ** 2) + 1)
            )
            error = torch.zeros_like(prior)
        else:
            x, std = points(0), _noise(schedule, ends[0])
            draws = [
                of_levels.level_log_prob(
                    batch.x, x + std * _normal(seed, batch.keys, _STEP_DECODER + j, x), torch.tensor(std)
                )
                for j in range(_DECODER_DRAWS)
            ]
            each = torch.stack([draw.flatten(1).sum(1) for draw in draws]).cpu()
            decoded, error = each.mean(0), each.std(0) / math.sqrt(_DECODER_DRAWS)
        decoder_errors.append(error)
        terms = {"prior": prior, "reconstruction": decoded + jacobian, "diffusion": parts["steps"].sum(1)}
        total = terms["prior"] + terms["reconstruction"] + terms["diffusion"]
        return total, torch.hypot(noise, error), terms | parts

    result = in_batches(denoiser, images, batches, evaluate, "lower bound", protocol, levels)
    error = torch.cat(decoder_errors)
    levels_error = (result.std_error.square() - error.square()).clamp(min=0.0).sqrt()
    result = result.with_error("noise", mean_error(levels_error, dims))
    return result if of_levels is None else result.with_error("decoder", mean_error(error, dims))


def _prior_kl(schedule: Schedule, square: Tensor, dims: int, t: float) -> Tensor:
    """KL(q(x_t | x) || N(0, (alpha^2 + sigma^2) I)), shape (B,), from |x|^2.

    The prior has the standard deviation of x_t for unit-variance data.
    """
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    prior = alpha.square() + sigma.square()
    ratio = float(sigma.square() / prior)
    return 0.5 * (square * float(alpha.square() / prior) + dims * (ratio - 1.0 - math.log(ratio)))


def _noise(schedule: Schedule, t: float) -> float:
    """sigma / alpha: the standard deviation of the noise in the data at t."""
    return math.exp(-0.5 * float(schedule.log_snr(torch.tensor(t, dtype=torch.float64))))


def _normal(seed: int, rows: Tensor, step: int, x: Tensor) -> Tensor:
    return random.normal(seed, rows, step, x.shape[1:], random.STREAM_EVALUATE, x.dtype, x.device)
