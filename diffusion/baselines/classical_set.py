"""The classical models reported next to a trained one, and why one is left out: their costs are known in advance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..likelihood import Dequantizer, Estimate
from . import classical
from .level_models import AutoregressiveForest, CategoricalMixture

Progress = Callable[[int, int], None]
# Takes images (B, *shape), their rows in their split, which key noise, and a callback for progress (done, total).
Measure = Callable[[Tensor, Tensor, Progress | None], Estimate]

# Beyond these a fit takes longer than the model it is compared with, or more memory than a laptop has.
_DENSITY_DIMS = 128
_FOREST_PIXELS = 300_000
_COUNTED_PIXELS = 60_000_000


@dataclass(frozen=True)
class ClassicalModel:
    """A classical model that may be reported next to a trained one.

    Args:
        name: Its name in tables.
        version: Changes whenever its figures change; stored figures of other versions are measured again.
        measure: Fits it and measures images.
        left_out: Why it is not fitted to these images; empty if it is.
    """

    name: str
    version: int
    measure: Measure
    left_out: str = ""


def classical_models(train: Tensor, validation: Tensor, levels: int) -> list[ClassicalModel]:
    """The classical models for these images, not fitted yet.

    Args:
        train: The images they are fitted to: level indices, uint8 of shape (N, *shape).
        validation: The images their hyperparameters are chosen on, likewise.
        levels: The number of levels.
    """
    dims = math.prod(train.shape[1:])
    unchosen = "" if len(validation) else "there are no validation images to choose its free numbers on"
    large = f"{dims:,} dimensions are more than {_DENSITY_DIMS}" if dims > _DENSITY_DIMS else ""
    pixels = len(train) * dims
    uncounted = f"{pixels:,} training pixels are more than {_COUNTED_PIXELS:,}" if pixels > _COUNTED_PIXELS else ""
    many = f"{levels:,} levels are more than 256" if levels > 256 else ""
    slow = f"{pixels:,} training pixels are more than {_FOREST_PIXELS:,}" if pixels > _FOREST_PIXELS else ""

    def histogram(images: Tensor, rows: Tensor, progress: Progress | None) -> Estimate:
        return classical.IndependentPixels.fit(train, levels).log_likelihood(images)

    def gaussians(images: Tensor, rows: Tensor, progress: Progress | None) -> Estimate:
        return classical.gaussian_mixture(train, validation, images, Dequantizer(levels), indices=rows)

    def categoricals(images: Tensor, rows: Tensor, progress: Progress | None) -> Estimate:
        return CategoricalMixture.fit(train, validation, levels, progress=progress).log_likelihood(images)

    def forest(images: Tensor, rows: Tensor, progress: Progress | None) -> Estimate:
        return AutoregressiveForest.fit(train, validation, levels, progress=progress).log_likelihood(images)

    return [
        ClassicalModel("independent pixels", 1, histogram, many),
        ClassicalModel("Gaussian mixture", 1, gaussians, unchosen or large),
        ClassicalModel("mixture of categoricals", 1, _timed(categoricals), many or unchosen or uncounted),
        ClassicalModel("autoregressive forest", 1, _timed(forest), many or unchosen or large or slow),
    ]


def _timed(measure: Measure) -> Measure:
    """Include the seconds of the fit in those of the figure."""

    def timed(images: Tensor, rows: Tensor, progress: Progress | None) -> Estimate:
        start = time.perf_counter()
        estimate = measure(images, rows, progress)
        return replace(estimate, seconds=time.perf_counter() - start)

    return timed
