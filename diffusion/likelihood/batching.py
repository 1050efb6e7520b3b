"""One loop over the images for every estimator: batches, time, evaluations, and the network in evaluation mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..denoisers.evaluations import count_evaluations, evaluation_mode
from ..errors import UserError
from ..numerics import random
from ..schedules import Schedule
from ..schedules.schedule import log_snr_ends
from .estimate import Estimate

# Called after each batch with (images done, images in all).
Progress = Callable[[int, int], None]

# Numbers in flight for the default batch size: enough to fill a processor, few enough for its memory.
_IN_FLIGHT = 2**19
_LARGEST = 1024


def choose_batch_size(batch_size: int | None, dims: int) -> int:
    """The batch size for data of `dims` dimensions: `batch_size`, or a suitable one if it is None.

    Raises:
        UserError: For a batch size below one.
    """
    if batch_size is None:
        return max(1, min(_LARGEST, _IN_FLIGHT // dims))
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}; must be at least 1")
    return batch_size


def check_data(denoiser: Denoiser, x: Tensor, indices: Tensor | None, cond: Any) -> Tensor:
    """Return the indices of the images (0 .. N - 1 by default).

    Raises:
        UserError: For no image, images of another shape, or a wrong number of indices or labels.
    """
    if x.ndim == 0 or len(x) == 0 or x.shape[1:] != tuple(denoiser.shape):
        raise UserError(
            f"images: found shape {tuple(x.shape)}; the model's is (N, {', '.join(map(str, denoiser.shape))})"
        )
    for name, rows in (("indices", indices), ("cond", cond)):
        if rows is not None and len(rows) != len(x):
            raise UserError(f"{name}: found {len(rows)} for {len(x)} images; accepted: one each, or none at all")
    return torch.arange(len(x)) if indices is None else indices.cpu()


def protocol_of(denoiser: Denoiser, path: Schedule | None = None) -> dict[str, object]:
    """The model's part of a protocol: its path, and the ends between which the likelihood is measured.

    Args:
        denoiser: The model.
        path: The path between the ends of the measurement, if they differ; they are then also given in log-SNR.
    """
    ends = denoiser.schedule if path is None else path
    found = {"schedule": repr(denoiser.schedule), "t_min": ends.t_min, "t_max": ends.t_max}
    return found if path is None else {**found, "log_snr": list(log_snr_ends(path))}


def check_finite(log_prob: Tensor, first: int, estimator: str) -> None:
    """Refuse log-probabilities (B,) that are not finite, for the data from `first` on.

    Raises:
        UserError: Naming the first of these data.
    """
    bad = (~torch.isfinite(log_prob)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise UserError(
            f"{estimator}: the log-probability of datum {first + row} is {float(log_prob[row])}; look at the model's "
            "weights and the range of its outputs"
        )


def in_batches(
    denoiser: Denoiser,
    count: int,
    batch_size: int,
    estimate: Callable[[slice], Estimate],
    progress: Progress | None = None,
) -> Estimate:
    """Join `estimate(rows)` of every slice of `batch_size` images; fills in the seconds and the evaluations."""
    parts, start = [], time.perf_counter()
    with torch.no_grad(), evaluation_mode(denoiser), count_evaluations(denoiser) as counter:
        for first in range(0, count, batch_size):
            rows = slice(first, min(first + batch_size, count))
            part = estimate(rows)
            check_finite(part.log_prob, rows.start, str(part.protocol.get("estimator", "log_prob")))
            parts.append(part)
            if progress is not None:
                progress(rows.stop, count)
    joined = Estimate.join(parts)
    return replace(joined, nfe=counter.rows / count, seconds=time.perf_counter() - start)


# Noise is drawn at step i for evaluation i; this step differs from all of them.
_STEP_POSITIONS = 2**31


def stratified_positions(seed: int, indices: Int[Tensor, " b"], count: int) -> Float[Tensor, " b k"]:
    """Uniform draws in (0, 1), the i-th of a row in its i-th stratum; a row depends on (seed, index) only."""
    u = random.uniform(seed, indices, _STEP_POSITIONS, (count,), random.STREAM_EVALUATE, torch.float64)
    return (torch.arange(count, dtype=torch.float64) + u) / count


def stratified_error(values: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
    """The standard error of the sum over strata, from the differences above; nan for fewer than three."""
    count = values.shape[1]
    if count < 3:
        return torch.full_like(values[:, 0], math.nan)
    second = values[:, :-2] - 2.0 * values[:, 1:-1] + values[:, 2:]
    at_ends = (values[:, 0] - values[:, 1]).square() + (values[:, -1] - values[:, -2]).square()
    return (second.square().sum(1) / 6.0 + at_ends / 2.0).sqrt()


def squares(x: Float[Tensor, " b *dims"]) -> Float[Tensor, " b"]:
    """|x|^2 of each row, in float64."""
    return x.double().flatten(1).square().sum(1)
