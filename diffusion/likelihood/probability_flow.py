"""Log-likelihoods by the probability-flow ODE: of continuous data, and of images of levels by uniform dequantisation.

The mathematics of one batch is in `flow_density`; here are the draws, keyed by (seed, image index, draw), and the
errors. A row's result depends on (seed, index) only; the batch that it is solved in changes nothing beyond tolerance.

The default tolerances are measured on exact mixtures (VP). For densities 5e-6: the error of each of 1,536 data in the
plane stays below 5e-4 bits/dim (140 to 176 evaluations for components of deviation 0.08, 50 to 60 for 0.3); 2e-5 lets
the few data between components go to 3e-3. For images 1e-4: in 192 dimensions the error of each stays below 3e-4 and
that of the mean below 1e-4, far less than the trace's noise, at 80 evaluations for deviation 0.08 and 44 for 0.2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .. import random
from ..denoisers.denoiser import Denoiser
from ..errors import UserError
from .batching import Progress, check_data, choose_batch_size, in_batches, protocol_of
from .dequantization import Dequantizer
from .estimate import Estimate, mean_error
from .flow_density import Solve, flow_log_density


def _repeat(rows: Tensor, times: int) -> Tensor:
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
    seed: int = 0,
    cond: Tensor | None = None,
    batch_size: int | None = None,
    indices: Int[Tensor, " b"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The log-density of continuous data under the probability-flow ODE of a denoiser.

    Args:
        denoiser: The model.
        x: Data, shape (B, *shape).
        trace, probes, method, tolerance, steps, grid: See `Solve`.
        seed: The seed of the probes.
        cond: Class labels, shape (B,), or None.
        batch_size: The data solved for together.
        indices: Keys of the data's probes, shape (B,); 0 .. B - 1 by default. A row depends on (seed, index) only.
        progress: Called with (data done, data in all).

    Returns:
        Kind `exact` (up to the tolerance), or `unbiased` for Hutchinson's trace, whose standard error comes from the
        spread over probes and is nan for one probe (the mean's interval stands: see `Estimate.mean`).

    Raises:
        UserError: For bad settings or data; `SolverError` where the solver cannot go on.
    """
    solve = Solve(trace, probes, method, tolerance, steps, grid)
    indices = check_data(denoiser, x, indices, cond)
    dims = x[0].numel()
    protocol = {"estimator": "probability-flow ODE", **solve.protocol(), **protocol_of(denoiser)}
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
    trace: str = "hutchinson",
    probes: int = 1,
    tolerance: float = 1e-4,
    method: str = "dopri5",
    steps: int = Solve.steps,
    grid: str = Solve.grid,
    seed: int = 0,
    cond: Tensor | None = None,
    batch_size: int | None = None,
    indices: Int[Tensor, " b"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """A lower bound of the log-probability of images of levels: the ODE's log-density, uniformly dequantised.

    Args:
        denoiser: The model.
        dequantizer: The levels and their places.
        images: Level indices, shape (B, *shape).
        draws: Dequantised points an image (each with its own probes), whose log-densities are averaged.
        batch_size: The dequantised points solved for together.
        trace, probes, ..., progress: As `log_density`.

    Returns:
        Kind `lower bound` (in expectation over the draws; Jensen). The standard error comes from the spread over draws
        and holds the probes' noise; it is nan for one draw (the mean's interval stands: see `Estimate.mean`).

    Raises:
        UserError: For bad settings or images; `SolverError` where the solver cannot go on.
    """
    solve = Solve(trace, probes, method, tolerance, steps, grid)
    if draws < 1:
        raise UserError(f"draws: found {draws}; must be at least 1")
    indices = check_data(denoiser, images, indices, cond)
    dims = images[0].numel()
    protocol = {
        "estimator": "probability-flow ODE",
        **solve.protocol(),
        **protocol_of(denoiser),
        "dequantization": "uniform",
        "levels": dequantizer.levels,
        "draws": draws,
        "seed": seed,
    }

    size = choose_batch_size(batch_size, dims)

    def log_probs(rows: slice, some: range) -> Tensor:
        """Of `some` draws of the images `rows`, solved for together: shape (B, draws, P)."""
        keys, shape = indices[rows], images.shape[1:]
        u = [
            random.uniform(seed, keys, draw, shape, random.STREAM_DEQUANTIZE, torch.float64, images.device)
            for draw in some
        ]
        x = dequantizer.dequantize(_repeat(images[rows], len(some)), torch.stack(u, dim=1).flatten(0, 1))
        v = _probes(solve, seed, keys, some, x)
        labels = None if cond is None else _repeat(cond[rows], len(some))
        return flow_log_density(denoiser, x, solve, v, labels).reshape(len(keys), len(some), -1)

    probe_variances = []

    def estimate(rows: slice) -> Estimate:
        values = torch.cat([log_probs(rows, range(draws)[i : i + size]) for i in range(0, draws, size)], dim=1)
        per_draw = values.mean(2)
        if values.shape[2] > 1:
            probe_variances.append((values.var(2).mean(1) / (values.shape[2] * draws)).cpu())
        return Estimate(
            log_prob=(per_draw.mean(1) + dequantizer.log_jacobian(dims)).cpu(),
            dims=dims,
            levels=dequantizer.levels,
            std_error=_standard_error(per_draw).cpu(),
            kind="lower bound",
            protocol=protocol,
            indices=indices[rows],
        )

    result = in_batches(denoiser, len(images), max(1, size // draws), estimate, progress)
    if draws > 1:
        result = result.with_error("draws", mean_error(result.std_error, dims))
    if trace == "hutchinson" and probes > 1:
        result = result.with_error("probes", mean_error(torch.cat(probe_variances).sqrt(), dims))
    return result
