"""Classical models as rows for scale, kept beside a comparison so that they are fitted once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..data import ImageData
from ..errors import UserError
from ..likelihood import Dequantizer, Estimate, classical
from . import records
from .records import Evaluation, Protocol
from .subjects import rows_of

# Beyond this many dimensions a full-covariance mixture takes longer than the model.
_MIXTURE_DIMS = 128


def classical_rows(folder: Path, data: ImageData, images: Tensor, identity: dict[str, object]) -> list[Evaluation]:
    """An independent histogram a pixel, the best Gaussian mixture (small images) and PNG (1 or 3 channels).

    Args:
        folder: Where they are kept.
        data: The data set, whose training images they are fitted to.
        images: The images to measure, in the order of their rows in the split.
        identity: What identifies these.
    """
    indices = rows_of(identity)
    fits: dict[str, Callable[[], Estimate]] = {
        "independent pixels": lambda: classical.IndependentPixels.fit(data.train, data.levels).log_likelihood(images)
    }
    if math.prod(data.shape) <= _MIXTURE_DIMS and len(data.validation):
        fits["Gaussian mixture"] = lambda: classical.gaussian_mixture(
            data.train, data.validation, images, Dequantizer(data.levels), indices=indices
        )
    if data.shape[0] in (1, 3):
        fits["PNG"] = lambda: classical.png(images, data.levels)
    fitted_on = hashlib.sha256(data.train.numpy().tobytes() + data.validation.numpy().tobytes()).hexdigest()
    rows = []
    for name, fit in fits.items():
        protocol = Protocol(identity, fitted_on, name.lower().replace(" ", "-"), {})
        try:
            row = records.read(folder / f"{protocol.name}.json")
        except UserError:  # not there, or damaged
            model = {"run": name, "family": "classical", "parameters": None, "data": data.name}
            row = records.write(folder, protocol, model, replace(fit(), indices=indices))
        rows.append(row)
    return rows
