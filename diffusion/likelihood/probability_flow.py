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
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..errors import check_at_least_one, choose
from ..numerics import random
from ..schedules.schedule import log_snr_ends
from .batching import Progress, check_data, choose_batch_size, in_batches, protocol_of
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


def log_density(
    denoiser: Denoiser,
    x: Float[Tensor, " b *dims"],
    trace: str = "exact",
    probes: int = 1,
    tolerance: float = Solve.tolerance,
    method: str = "dopri5",
    steps: int = Solve.steps,
    grid: str = Solve.grid,
    log_snr_min: float | None = None,
    log_snr_max: float | None = None,
    seed: int = 0,
    cond: Any = None,
    batch_size: int | None = None,
    indices: Int[Tensor, " b"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The log-density of continuous data under the probability-flow ODE of a denoiser.

    Args:
        denoiser: The model.
        x: Data, shape (B, *shape).
        trace, probes, method, tolerance, steps, grid, log_snr_min, log_snr_max: See `Solve`.
        seed: The seed of the probes.
        cond: Class labels, shape (B,), or None.
        batch_size: The number of samples solved together.
        indices: Keys of the samples' probes, shape (B,); 0 .. B - 1 by default. A row depends on (seed, index) only.
        progress: Called with (data done, data in all).

    Returns:
        Kind `exact` (up to the tolerance), or `unbiased` for Hutchinson's trace, whose standard error comes from the
        spread over probes and is nan for one probe (the interval of the mean remains valid: see `Estimate.mean`).

    Raises:
        UserError: For bad settings or data; `SolverError` if the solver fails.
    """
    solve = Solve(trace, probes, method, tolerance, steps, grid, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    path = solve.path(denoiser)
    indices = check_data(denoiser, x, indices, cond)
    dims = x[0].numel()
    protocol = {"estimator": ESTIMATOR, **solve.protocol(), **protocol_of(denoiser, path)}
    protocol |= {"seed": seed} if trace == "hutchinson" else {}

    def estimate(rows: slice) -> Estimate:
        v = _probes(solve, seed, indices[rows], range(1), x)
        draws = flow_log_density(denoiser, x[rows], solve, v, None if cond is None else cond[rows])
        std_error = torch.zeros_like(draws[:, 0]) if trace == "exact" else _standard_error(draws)
        return Estimate(
            log_prob=draws.mean(1).cpu(),
            dims=dims,
            levels=None,
            std_error=std_error.cpu(),
            kind="exact" if trace == "exact" else "unbiased",
            protocol=protocol,
            indices=indices[rows],
        )

    result = in_batches(denoiser, len(x), choose_batch_size(batch_size, dims), estimate, progress)
    if trace == "hutchinson" and probes > 1:
        return result.with_error("probes", mean_error(result.std_error, dims))
    return result


def log_likelihood_ode(
    denoiser: Denoiser,
    dequantizer: Dequantizer,
    images: UInt8[Tensor, " b *dims"],
    draws: int = 1,
    dequantization: str = "uniform",
    importance_weighted: bool = False,
    trace: str = "hutchinson",
    probes: int = 1,
    tolerance: float = 1e-4,
    method: str = "dopri5",
    steps: int = Solve.steps,
    grid: str = Solve.grid,
    log_snr_min: float | None = None,
    log_snr_max: float | None = None,
    seed: int = 0,
    cond: Any = None,
    batch_size: int | None = None,
    indices: Int[Tensor, " b"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """A lower bound on the log-probability of discrete images: the ODE's log-density, dequantised.

    Args:
        denoiser: The model.
        dequantizer: The levels and their places.
        images: Level indices, shape (B, *shape).
        draws: The number K of dequantised points per image, each with its own probes.
        dequantization: `uniform` (for a model trained on dequantised images) or `truncated-normal` (i-DODE,
            arXiv 2305.03935: for one trained on the bin centres).
        importance_weighted: Use log sum_k exp w_k - log K of the draws' log-weights instead of their mean.
        batch_size: The number of dequantised points solved together.
        trace, probes, ..., progress: As `log_density`.

    Returns:
        Kind `lower bound` (in expectation over the draws; Jensen), but `surrogate` for importance-weighted draws with
        Hutchinson's trace. The standard error comes from the spread over draws (for weighted ones it is that of log P:
        `importance_weights`, whose diagnostics are among the terms) and includes the noise of the probes; it is nan for
        one draw (the interval of the mean remains valid: see `Estimate.mean`).

    Raises:
        UserError: For bad settings or images; `SolverError` if the solver fails.
    """
    solve = Solve(trace, probes, method, tolerance, steps, grid, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    path = solve.path(denoiser)
    check_at_least_one(draws=draws)
    choose("dequantization", dequantization, DEQUANTIZATIONS)
    indices = check_data(denoiser, images, indices, cond)
    dims = images[0].numel()
    protocol = {
        "estimator": ESTIMATOR,
        **solve.protocol(),
        **protocol_of(denoiser, path),
        "dequantization": dequantization,
        "levels": dequantizer.levels,
        "draws": draws,
        "importance_weighted": importance_weighted,
        "seed": seed,
    }

    size = choose_batch_size(batch_size, dims)

    noise = math.exp(-0.5 * log_snr_ends(path)[1])  # the standard deviation of the noise at t_min

    def log_weights(rows: slice, some: range) -> Tensor:
        """log p - log q of `some` draws of the images `rows`, solved together: shape (B, draws, P)."""
        keys, shape = indices[rows], images.shape[1:]
        u = [
            random.uniform(seed, keys, draw, shape, random.STREAM_DEQUANTIZE, torch.float64, images.device)
            for draw in some
        ]
        repeated, u = _repeat(images[rows], len(some)), torch.stack(u, dim=1).flatten(0, 1)
        if dequantization == "uniform":
            x, log_q = dequantizer.dequantize(repeated, u), -dequantizer.log_jacobian(dims)
        else:
            x, log_q = dequantizer.dequantize_truncated_normal(repeated, u, noise)
            log_q = log_q[:, None]
        v = _probes(solve, seed, keys, some, x)
        labels = None if cond is None else _repeat(cond[rows], len(some))
        return (flow_log_density(denoiser, x, solve, v, labels) - log_q).reshape(len(keys), len(some), -1)

    probe_variances = []

    def estimate(rows: slice) -> Estimate:
        values = torch.cat([log_weights(rows, range(draws)[i : i + size]) for i in range(0, draws, size)], dim=1).cpu()
        per_draw = values.mean(2)
        if importance_weighted:
            total = LogMeanExp()
            total.add(per_draw)
            log_prob, std_error, shares, terms = total.value, total.std_error, per_draw.softmax(1), total.diagnostics
        else:
            log_prob, std_error = per_draw.mean(1), _standard_error(per_draw)
            shares, terms = torch.full_like(per_draw, 1.0 / draws), {}
        if values.shape[2] > 1:
            probe_variances.append((shares.square() * values.var(2)).sum(1) / values.shape[2])
        return Estimate(
            log_prob=log_prob,
            dims=dims,
            levels=dequantizer.levels,
            std_error=std_error,
            kind="surrogate" if importance_weighted and draws > 1 and trace == "hutchinson" else "lower bound",
            protocol=protocol,
            indices=indices[rows],
            terms=terms,
        )

    result = in_batches(denoiser, len(images), max(1, size // draws), estimate, progress)
    of_probes = mean_error(torch.cat(probe_variances).sqrt(), dims) if probe_variances else 0.0
    if draws > 1:  # the spread over draws includes that over the probes of each draw
        of_all = mean_error(result.std_error, dims)
        result = result.with_error("draws", math.sqrt(max(0.0, of_all**2 - of_probes**2)))
    if probe_variances and trace == "hutchinson":
        result = result.with_error("probes", of_probes)
    return result
