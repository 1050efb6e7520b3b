"""Log-likelihoods by the probability-flow ODE: of continuous data, and of discrete images by dequantisation.

The mathematics of one batch is in `flow_density`; here are the draws, keyed by (seed, image index, draw), and the
errors. A row's result depends on (seed, index) only; the rest of its batch changes it only by rounding.

A dequantised draw x_k of an image has the log-weight w_k = log p(x_k) - log q(x_k) (`dequantization`). Their mean is a
lower bound of log P; so is the importance-weighted log sum_k exp w_k - log K (Burda et al. 2016, arXiv 1509.00519,
eq. 8; for dequantisation: Ho et al. 2019, Flow++, arXiv 1902.00275), which increases with K in expectation to log P. It
assumes that w_k is exact: the noise of Hutchinson's trace, harmless in a mean, is exponentiated, and raises it.

The default tolerances were chosen on exact mixtures (VP). For densities 5e-6: the error of each of 1,536 samples in the
plane is below 5e-4 bits/dim (140 to 176 evaluations for components of standard deviation 0.08, 50 to 60 for 0.3); with
2e-5 it is up to 3e-3 for the few between components. For images 1e-4: in 192 dimensions the error of each is below 3e-4
and that of the mean below 1e-4, far less than the trace noise, at 80 evaluations for standard deviation 0.08 and 44 for
0.2.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..errors import check_at_least_one, choose
from ..numerics import random
from ..schedules.schedule import log_snr_ends
from .batching import Batch, Batches, Values, as_function, dims_of, in_batches, protocol_of
from .dequantization import DEQUANTIZATIONS, Dequantizer
from .estimate import Estimate, mean_error
from .flow_density import Solve, flow_log_density
from .importance_weights import LogMeanExp

ESTIMATOR = "probability-flow ODE"


def _repeat(rows: Any, times: int) -> Any:
    return rows.repeat_interleave(times, dim=0)


def _probes(solve: Solve, seed: int, keys: Tensor, draws: range, x: Tensor) -> Tensor | None:
    """Signs for the draws of each key, shape (keys * draws, P, *shape), in the order of `x`."""
    if solve.trace == "exact":
        return None
    shape = (solve.probes, *x.shape[1:])
    v = [random.rademacher(seed, keys, draw, shape, random.STREAM_PROBE, torch.float64, x.device) for draw in draws]
    return torch.stack(v, dim=1).flatten(0, 1)


def _standard_error(draws: Float[Tensor, " b n"]) -> Tensor:
    """Of the mean over the last axis; nan for a single draw."""
    n = draws.shape[1]
    return draws.std(dim=1) / math.sqrt(n) if n > 1 else torch.full_like(draws[:, 0], math.nan)


@dataclass(frozen=True)
class FlowDensity(Solve):
    """The log-density of continuous data under the probability-flow ODE of a denoiser.

    Args:
        trace, probes, ...: As `Solve`.
    """

    trace: str = Solve.trace
    probes: int = Solve.probes

    def __call__(self, denoiser: Denoiser, x: Float[Tensor, " b *dims"], batches: Batches) -> Estimate:
        """Measure data of shape (B, *shape).

        Returns:
            Kind `exact` (up to the tolerance), or `unbiased` for Hutchinson's trace, whose standard error comes from
            the spread over probes and is nan for one probe (the interval of the mean remains valid: see
            `Estimate.mean`).

        Raises:
            UserError: For data that do not fit the model; `SolverError` if the solver fails.
        """
        path, dims, exact = self.path(denoiser), dims_of(denoiser, x), self.trace == "exact"
        protocol = {"estimator": ESTIMATOR, **self.protocol(), **protocol_of(denoiser, path)}
        protocol |= {} if exact else {"seed": batches.seed}

        def evaluate(batch: Batch) -> Values:
            v = _probes(self, batches.seed, batch.keys, range(1), x)
            draws = flow_log_density(denoiser, batch.x, self, v, batch.cond)
            std_error = torch.zeros_like(draws[:, 0]) if exact else _standard_error(draws)
            return draws.mean(1).cpu(), std_error.cpu(), {}

        kind = "exact" if exact else "unbiased"
        result = in_batches(denoiser, x, batches, evaluate, kind, protocol)
        if exact or self.probes == 1:
            return result
        return result.with_error("probes", mean_error(result.std_error, dims))


@dataclass(frozen=True)
class FlowLikelihood(Solve):
    """A lower bound on the log-probability of discrete images: the ODE's log-density, dequantised.

    Args:
        draws: The number K of dequantised points per image, each with its own probes.
        dequantization: `uniform` (for a model trained on dequantised images) or `truncated-normal` (i-DODE,
            arXiv 2305.03935: for one trained on the bin centres).
        importance_weighted: Use log sum_k exp w_k - log K of the draws' log-weights instead of their mean.
        trace, probes, ...: As `Solve`.
    """

    draws: int = 1
    dequantization: str = "uniform"
    importance_weighted: bool = False
    _: KW_ONLY
    trace: str = "hutchinson"
    tolerance: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        check_at_least_one(draws=self.draws)
        choose("dequantization", self.dequantization, DEQUANTIZATIONS)

    def __call__(
        self, denoiser: Denoiser, images: Integer[Tensor, " b *dims"], batches: Batches, dequantizer: Dequantizer
    ) -> Estimate:
        """Measure level indices of shape (B, *shape); a batch has as many dequantised points as its size says.

        Returns:
            Kind `lower bound` (in expectation over the draws; Jensen), but `surrogate` for importance-weighted draws
            with Hutchinson's trace. The standard error comes from the spread over draws (for weighted ones it is that
            of log P: `importance_weights`, whose diagnostics are among the terms) and includes the noise of the probes;
            it is nan for one draw (the interval of the mean remains valid: see `Estimate.mean`).

        Raises:
            UserError: For images that do not fit the model; `SolverError` if the solver fails.
        """
        path, dims, seed, draws = self.path(denoiser), dims_of(denoiser, images), batches.seed, self.draws
        weighted, hutchinson = self.importance_weighted, self.trace == "hutchinson"
        protocol = {
            "estimator": ESTIMATOR,
            **self.protocol(),
            **protocol_of(denoiser, path),
            "dequantization": self.dequantization,
            "levels": dequantizer.levels,
            "draws": draws,
            "importance_weighted": weighted,
            "seed": seed,
        }
        size = batches.size(dims)
        noise = math.exp(-0.5 * log_snr_ends(path)[1])  # the standard deviation of the noise at t_min

        def log_weights(batch: Batch, some: range) -> Tensor:
            """log p - log q of `some` draws of a batch's images, solved together: shape (B, draws, P)."""
            keys, shape = batch.keys, images.shape[1:]
            u = [
                random.uniform(seed, keys, draw, shape, random.STREAM_DEQUANTIZE, torch.float64, images.device)
                for draw in some
            ]
            repeated, u = _repeat(batch.x, len(some)), torch.stack(u, dim=1).flatten(0, 1)
            if self.dequantization == "uniform":
                x, log_q = dequantizer.dequantize(repeated, u), -dequantizer.log_jacobian(dims)
            else:
                x, log_q = dequantizer.dequantize_truncated_normal(repeated, u, noise)
                log_q = log_q[:, None]
            v = _probes(self, seed, keys, some, x)
            labels = None if batch.cond is None else _repeat(batch.cond, len(some))
            return (flow_log_density(denoiser, x, self, v, labels) - log_q).reshape(len(keys), len(some), -1)

        probe_variances = []

        def evaluate(batch: Batch) -> Values:
            chunks = (range(draws)[first : first + size] for first in range(0, draws, size))
            values = torch.cat([log_weights(batch, some) for some in chunks], dim=1).cpu()
            per_draw = values.mean(2)
            if weighted:
                total = LogMeanExp()
                total.add(per_draw)
                log_prob, std_error, shares, terms = (
                    total.value,
                    total.std_error,
                    per_draw.softmax(1),
                    total.diagnostics,
                )
            else:
                log_prob, std_error, terms = per_draw.mean(1), _standard_error(per_draw), {}
                shares = torch.full_like(per_draw, 1.0 / draws)
            if values.shape[2] > 1:
                probe_variances.append((shares.square() * values.var(2)).sum(1) / values.shape[2])
            return log_prob, std_error, terms

        kind = "surrogate" if weighted and draws > 1 and hutchinson else "lower bound"
        at_once = max(1, size // draws)
        result = in_batches(denoiser, images, batches, evaluate, kind, protocol, dequantizer.levels, at_once)
        of_probes = mean_error(torch.cat(probe_variances).sqrt(), dims) if probe_variances else 0.0
        if draws > 1:  # the spread over draws includes that over the probes of each draw
            of_all = mean_error(result.std_error, dims)
            result = result.with_error("draws", math.sqrt(max(0.0, of_all**2 - of_probes**2)))
        return result.with_error("probes", of_probes) if probe_variances and hutchinson else result


log_density = as_function("log_density", FlowDensity)
log_likelihood_ode = as_function("log_likelihood_ode", FlowLikelihood, of_levels=True)
