"""Log-likelihoods from denoising errors alone: the pointwise I-MMSE relation (Kong et al. 2023, arXiv 2302.03792).

For x_t / alpha_t = x + eps / sqrt(s) with s the signal-to-noise ratio, d/ds KL(p(x_t | x) || p(x_t)) = mmse(x, s) / 2
at every single x, where mmse(x, s) = E_eps ||x - x_hat(x_t)||^2 and x_hat is the exact denoiser. Integrated over s,

    -log p(x) = D/2 log(2 pi e) - 1/2 integral of ( D / (1 + s) - mmse(x, s) ) ds        over (0, infinity).

Here relative to any Gaussian p_ref = N(0, c I), whose denoiser is known, and in the log-SNR lambda, with
e = eps - eps_hat = sqrt(s) (x_hat - x) up to its sign:

    log p(x) = log p_ref(x) + 1/2 integral of E( ||e_ref||^2 - ||e||^2 ) dlambda,
    e_ref = (1 - k) sqrt(s) x - k eps (up to its sign),  k = c s / (c s + 1),  E||e_ref||^2 = (1-k)^2 s |x|^2 + k^2 D.

(c = 1 and E||e_ref||^2 averaged over data N(0, I) is the formula above.) c, the density of the noise levels and the
control variate are those of `gaussian_reference`. Compared with the plain formula, with uniform noise levels, they
divide the variance by 25, 10 and 3 on Gaussian mixtures of 192 dimensions and standard deviation 0.2, 0.08 and 0.01
(measured, K = 64).

Beyond the ends, the integrand is assumed to scale as exp(lambda) and exp(-lambda), its asymptotes for data of finite
variance and smooth density: the tail then is the integrand at the end, in closed form. If that does not hold (a path
that starts with signal, data on points), the budget's "noise end" and "data end", the whole of either tail, show it.

With an exact denoiser the value is unbiased, up to the ends. With another, ||e||^2 is too large on average over the
data, so the *mean* over test data is an upper bound on their entropy; and truncated at the path's ends, the same
integral is a lower bound on the log-density of the reverse SDE (`variational_bound.elbo_continuous`). But the tails
extrapolate the model beyond its path, where it defines no law: the kind is then `surrogate`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..denoisers.exact import Exact
from ..errors import UserError
from ..numerics import random
from ..schedules.forward_process import diffuse
from ..schedules.schedule import log_snr_ends
from .batching import Progress, check_data, choose_batch_size, in_batches, protocol_of, squares
from .dequantization import Dequantizer
from .estimate import DATA_END, NOISE_END, Estimate, mean_error
from .gaussian_reference import GaussianReference


def log_density_immse(
    denoiser: Denoiser,
    x: Float[Tensor, " b *dims"],
    evaluations: int = 128,
    seed: int = 0,
    cond: Any = None,
    batch_size: int | None = None,
    indices: Int[Tensor, " b"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The log-density of continuous data from denoising errors (arXiv 2302.03792; formula in the module docstring).

    Args:
        denoiser: The model.
        x: Data, shape (B, *shape).
        evaluations: The number K of noise levels per sample, three or more, one forward evaluation each.
        seed: The seed; a row depends on (seed, index) only.
        cond: Class labels, shape (B,), or None.
        batch_size: The data taken together.
        indices: Keys of the data's noise, shape (B,); 0 .. B - 1 by default.
        progress: Called with (data done, data in all).

    Returns:
        Kind `unbiased` for an exact denoiser, otherwise `surrogate`. The budget has `noise`, and `data end` and
        `noise end`: the sizes of the parts beyond the path's ends. Terms in nats, which add up to log_prob:
        `reference`, `integral`, `ends`.

    Raises:
        UserError: For fewer than three evaluations, or data that do not fit the model.
    """
    kind = "unbiased" if isinstance(denoiser, Exact) else "surrogate"
    return _immse(denoiser, None, x, evaluations, kind, seed, cond, batch_size, indices, progress)


def log_likelihood_immse(
    denoiser: Denoiser,
    dequantizer: Dequantizer,
    images: UInt8[Tensor, " b *dims"],
    evaluations: int = 128,
    seed: int = 0,
    cond: Any = None,
    batch_size: int | None = None,
    indices: Int[Tensor, " b"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The uniformly dequantised bound E_u log p(x + u) + D log w of images, by `log_density_immse`.

    The integral is linear, so every noise level has its own draw of u: the standard error includes both.

    Args:
        denoiser: The model.
        dequantizer: The levels and their places.
        images: Level indices, shape (B, *shape).
        evaluations, seed, cond, batch_size, indices, progress: As `log_density_immse`.

    Returns:
        Kind `lower bound` for an exact denoiser (Jensen), otherwise `surrogate`; the rest as `log_density_immse`.

    Raises:
        UserError: As `log_density_immse`.
    """
    kind = "lower bound" if isinstance(denoiser, Exact) else "surrogate"
    return _immse(denoiser, dequantizer, images, evaluations, kind, seed, cond, batch_size, indices, progress)


def _immse(
    denoiser: Denoiser,
    dequantizer: Dequantizer | None,
    data: Tensor,
    evaluations: int,
    kind: str,
    seed: int,
    cond: Any,
    batch_size: int | None,
    indices: Tensor | None,
    progress: Progress | None,
) -> Estimate:
    if evaluations < 3:
        raise UserError(f"evaluations: found {evaluations}; must be at least 3")
    indices = check_data(denoiser, data, indices, cond)
    schedule, dims = denoiser.schedule, data[0].numel()
    low, high = log_snr_ends(schedule)
    levels = None if dequantizer is None else dequantizer.levels
    jacobian = 0.0 if dequantizer is None else dequantizer.log_jacobian(dims)
    protocol = {"estimator": "I-MMSE", "evaluations": evaluations, **protocol_of(denoiser), "seed": seed}
    protocol |= {} if dequantizer is None else {"dequantization": "uniform", "levels": levels}

    tails: dict[str, list[Tensor]] = {DATA_END: [], NOISE_END: []}  # of each batch, beyond the path

    def point(rows: slice, i: int) -> Tensor:
        """The data of evaluation i."""
        if dequantizer is None:
            return data[rows].double()
        u = random.uniform(seed, indices[rows], i, data.shape[1:], random.STREAM_DEQUANTIZE, torch.float64)
        return dequantizer.dequantize(data[rows], u.to(data.device))

    def estimate(rows: slice) -> Estimate:
        labels = None if cond is None else cond[rows]
        if dequantizer is None:
            square = squares(data[rows]).cpu()
        else:  # E|x + u|^2 over a bin
            square = squares(dequantizer.center(data[rows], torch.float64)).cpu() + dims * dequantizer.width**2 / 12.0
        reference = GaussianReference(square, dims, low, high, seed, indices[rows], evaluations)

        def evaluate(i: int, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x, t = point(rows, i), schedule.inverse_log_snr(log_snr)
            eps = random.normal(seed, indices[rows], i, x.shape[1:], random.STREAM_EVALUATE, x.dtype, x.device)
            t = t.to(x.device)
            return x, eps, squares(eps - denoiser.eps(diffuse(schedule, x, t, eps), t, labels))

        integrand, inside = reference.differences(evaluate)
        outside = torch.zeros_like(inside)
        below = integrand[:, 0] * torch.exp(low - reference.log_snr[:, 0])
        above = integrand[:, -1] * torch.exp(reference.log_snr[:, -1] - high)
        outside[:, 0], outside[:, -1] = below, above
        tails[NOISE_END].append(below)
        tails[DATA_END].append(above)
        c = reference.variance
        terms = {
            "reference": -0.5 * (square / c + dims * torch.log(2.0 * math.pi * c)) + jacobian,
            "integral": inside.sum(1),
            "ends": outside.sum(1),
        }
        return Estimate(
            log_prob=terms["reference"] + terms["integral"] + terms["ends"],
            dims=dims,
            levels=levels,
            std_error=reference.error(inside + outside),
            kind=kind,
            protocol=protocol,
            indices=indices[rows],
            terms=terms,
        )

    result = in_batches(denoiser, len(data), choose_batch_size(batch_size, dims), estimate, progress)
    result = result.with_error("noise", mean_error(result.std_error, dims))
    for end, parts in tails.items():
        result = result.with_error(end, abs(float(torch.cat(parts).mean())) / result.nats_per_bit_per_dim)
    return result
