"""One loop over the images for every estimator: batches, time, evaluations, and the network in evaluation mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..denoisers.denoiser import Denoiser
from ..denoisers.evaluations import EvaluationCount, count_evaluations, evaluation_mode
from ..denoisers.given import as_fields, field_types
from ..errors import UserError
from ..numerics import random
from ..schedules import Schedule
from ..schedules.schedule import log_snr_ends
from .dequantization import Dequantizer
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


@dataclass(frozen=True, eq=False)
class Batches:
    """How an estimator takes its data: what keys their noise, their conditions, and how many are taken together.

    Args:
        seed: The seed; a row depends on (seed, index) only.
        cond: Class labels, shape (B,), another condition of the network, or None.
        batch_size: The number of rows processed together; by default as suits their dimensions.
        indices: Keys of the rows' noise, shape (B,); 0 .. B - 1 by default.
        progress: Called after each batch with (rows done, rows in all).
    """

    seed: int = 0
    cond: Any = None
    batch_size: int | None = None
    indices: Int[Tensor, " b"] | None = None
    progress: Progress | None = None

    def size(self, dims: int) -> int:
        """The batch size for data of `dims` dimensions (`choose_batch_size`)."""
        return choose_batch_size(self.batch_size, dims)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some of the rows: their data, the keys of their noise on the device of the data, and their conditions."""

    x: Tensor
    keys: Int[Tensor, " b"]
    cond: Any


@dataclass(frozen=True, eq=False)
class Points:
    """The points at which a denoiser sees a batch, float64.

    Args:
        batch: The batch, of level indices or of real data.
        dequantizer: The levels and their places; None for real data.
        dequantize: Dequantise levels uniformly, anew for each evaluation, instead of taking the centres of their bins.
        seed: The seed of the dequantisation.
    """

    batch: Batch
    dequantizer: Dequantizer | None
    dequantize: bool
    seed: int

    def __call__(self, i: int) -> Float[Tensor, " b *dims"]:
        """The points of evaluation i."""
        x = self.batch.x
        if self.dequantizer is None:
            return x.double()
        if not self.dequantize:
            return self.dequantizer.center(x, torch.float64)
        u = random.uniform(self.seed, self.batch.keys, i, x.shape[1:], random.STREAM_DEQUANTIZE, torch.float64)
        return self.dequantizer.dequantize(x, u)

    def middle(self) -> tuple[Float[Tensor, " b *dims"], float]:
        """The mean of x over the dequantisation, and the variance of each of its numbers."""
        if self.dequantizer is None:
            return self(0), 0.0
        spread = self.dequantizer.width**2 / 12.0 if self.dequantize else 0.0
        return self.dequantizer.center(self.batch.x, torch.float64), spread

    def mean_square(self) -> Float[Tensor, " b"]:
        """E|x|^2 over the dequantisation, on the CPU."""
        if self.dequantizer is None or not self.dequantize:
            return squares(self(0)).cpu()
        over_bin = self.batch.x[0].numel() * self.dequantizer.width**2 / 12.0
        return squares(self.dequantizer.center(self.batch.x, torch.float64)).cpu() + over_bin


def dims_of(denoiser: Denoiser, x: Tensor) -> int:
    """Return the number of dimensions of data for a denoiser.

    Raises:
        UserError: For no image, or images of another shape.
    """
    if x.ndim == 0 or len(x) == 0 or x.shape[1:] != tuple(denoiser.shape):
        raise UserError(
            f"images: found shape {tuple(x.shape)}; the model's is (N, {', '.join(map(str, denoiser.shape))})"
        )
    return x[0].numel()


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
    """Refuse log-probabilities (B,) that are not finite, for the data from `first` on."""
    bad = (~torch.isfinite(log_prob)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise UserError(
            f"{estimator}: the log-probability of sample {first + row} is {float(log_prob[row])}; look at the model's "
            "weights and the range of its outputs"
        )


# Of a batch: log_prob and its standard error, shape (B,), and the terms.
Values = tuple[Tensor, Tensor, dict[str, Tensor]]


def in_batches(
    model: nn.Module,
    x: Tensor,
    batches: Batches,
    evaluate: Callable[[Batch], Values],
    kind: str,
    protocol: dict[str, object],
    levels: int | None = None,
    size: int | None = None,
    nfe: float | None = None,
) -> Estimate:
    """The estimate of all data, from the values of each batch; fills in the seconds and the evaluations.

    Args:
        model, x, batches: The model, the data and how they are taken.
        evaluate: The values of a batch.
        kind, protocol, levels: As `Estimate`.
        size: The number of rows in a batch, by default that of `batches`.
        nfe: Evaluations per row; by default those of the model's denoisers are counted.

    Raises:
        UserError: For no data, a wrong number of indices or labels, and log-probabilities that are not finite.
    """
    count, cond = len(x), batches.cond
    if not count:
        raise UserError("images: found none; needs at least one")
    for name, rows in (("indices", batches.indices), ("cond", cond)):
        if rows is not None and len(rows) != count:
            raise UserError(f"{name}: found {len(rows)} for {count} images; accepted: one each, or none at all")
    keys = torch.arange(count) if batches.indices is None else batches.indices.cpu()
    dims, parts, start = x[0].numel(), [], time.perf_counter()
    size = batches.size(dims) if size is None else size
    counting = count_evaluations(model) if nfe is None else nullcontext(EvaluationCount())
    with torch.no_grad(), evaluation_mode(model), counting as counter:
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            batch = Batch(x[rows], keys[rows].to(x.device), None if cond is None else cond[rows])
            log_prob, std_error, terms = evaluate(batch)
            check_finite(log_prob, first, str(protocol["estimator"]))
            parts.append(Estimate(log_prob, dims, levels, std_error, kind, protocol, keys[rows], terms=terms))
            if batches.progress is not None:
                batches.progress(rows.stop, count)
    nfe = counter.rows / count if nfe is None else nfe
    return replace(Estimate.join(parts), nfe=nfe, seconds=time.perf_counter() - start)


def as_function(name: str, estimator: Any, of_levels: bool = False) -> Callable[..., Estimate]:
    """An estimator as a function of a model, its data, the estimator's settings and those of `Batches`.

    Args:
        name: The name of the function.
        estimator: A frozen dataclass of settings; an object is called with (model, data, batches).
        of_levels: Whether a `Dequantizer` comes between the model and the data (the object takes it last).
    """
    own, common = field_types(estimator), field_types(Batches)
    count = 3 if of_levels else 2

    def function(*arguments: Any, **options: Any) -> Estimate:
        if unknown := [key for key in options if key not in own and key not in common]:
            raise UserError(f"{', '.join(unknown)}: not an option of {name}; it takes: {', '.join((*own, *common))}")
        settings, batches = (as_fields(types, options) for types in (own, common))
        model, *dequantizer, x = arguments[:count]
        return estimator(*arguments[count:], **settings)(model, x, Batches(**batches), *dequantizer)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = estimator.__doc__
    return function


# Noise is drawn at step i for evaluation i; this step differs from all of them.
_STEP_POSITIONS = 2**31


def stratified_positions(seed: int, indices: Int[Tensor, " b"], count: int) -> Float[Tensor, " b k"]:
    """Uniform draws in (0, 1), the i-th of a row in its i-th stratum, on the CPU; a row depends on (seed, index)."""
    u = random.uniform(seed, indices.cpu(), _STEP_POSITIONS, (count,), random.STREAM_EVALUATE, torch.float64)
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
