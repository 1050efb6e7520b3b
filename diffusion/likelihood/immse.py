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
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..denoisers.exact import Exact
from ..errors import UserError
from ..numerics import random
from ..schedules.forward_process import diffuse
from ..schedules.schedule import log_snr_ends
from .batching import Batch, Batches, Points, Values, as_function, dims_of, in_batches, protocol_of, squares
from .dequantization import Dequantizer
from .estimate import DATA_END, NOISE_END, Estimate, mean_error
from .gaussian_reference import GaussianReference


@dataclass(frozen=True)
class IMMSE:
    """The log-density from denoising errors alone (arXiv 2302.03792; formula in the module docstring).

    Of images it is the uniformly dequantised value E_u log p(x + u) + D log w; the integral is linear, so every noise
    level has its own draw of u, and the standard error includes both.

    Args:
        evaluations: The number K of noise levels per sample, three or more, one forward evaluation each.
    """

    evaluations: int = 128

    def __post_init__(self):
        if self.evaluations < 3:
            raise UserError(f"evaluations: found {self.evaluations}; must be at least 3")

    def __call__(
        self, denoiser: Denoiser, data: Tensor, batches: Batches, dequantizer: Dequantizer | None = None
    ) -> Estimate:
        """Measure level indices (uint8), or continuous data without a dequantizer, shape (B, *shape).

        Returns:
            Kind `surrogate`; of an exact denoiser `unbiased`, or `lower bound` of images (Jensen). The budget has
            `noise`, and `data end` and `noise end`: the sizes of the parts beyond the path's ends. Terms in nats, which
            add up to log_prob: `reference`, `integral`, `ends`.

        Raises:
            UserError: For data that do not fit the model.
        """
        dims, seed, schedule = dims_of(denoiser, data), batches.seed, denoiser.schedule
        low, high = log_snr_ends(schedule)
        of_levels = dequantizer is not None
        jacobian = dequantizer.log_jacobian(dims) if of_levels else 0.0
        levels = dequantizer.levels if of_levels else None
        protocol = {"estimator": "I-MMSE", "evaluations": self.evaluations, **protocol_of(denoiser), "seed": seed}
        protocol |= {"dequantization": "uniform", "levels": levels} if of_levels else {}
        kind = "surrogate" if not isinstance(denoiser, Exact) else "lower bound" if of_levels else "unbiased"
        tails: dict[str, list[Tensor]] = {DATA_END: [], NOISE_END: []}  # of each batch, beyond the path

        def evaluate(batch: Batch) -> Values:
            points = Points(batch, dequantizer, of_levels, seed)
            square = points.mean_square()
            reference = GaussianReference(square, dims, low, high, seed, batch.keys, self.evaluations)

            def at(i: int, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                x, t = points(i), schedule.inverse_log_snr(log_snr)
                eps = random.normal(seed, batch.keys, i, x.shape[1:], random.STREAM_EVALUATE, x.dtype, x.device)
                t = t.to(x.device)
                return x, eps, squares(eps - denoiser.eps(diffuse(schedule, x, t, eps), t, batch.cond))

            integrand, inside = reference.differences(at)
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
            total = terms["reference"] + terms["integral"] + terms["ends"]
            return total, reference.error(inside + outside), terms

        result = in_batches(denoiser, data, batches, evaluate, kind, protocol, levels)
        result = result.with_error("noise", mean_error(result.std_error, dims))
        for end, parts in tails.items():
            result = result.with_error(end, abs(float(torch.cat(parts).mean())) / result.nats_per_bit_per_dim)
        return result


log_density_immse = as_function("log_density_immse", IMMSE)
log_likelihood_immse = as_function("log_likelihood_immse", IMMSE, of_levels=True)
