"""Classical models as rows of a comparison, stored next to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ...baselines import classical
from ...baselines.classical_set import classical_models
from ...data import ImageData
from ...errors import UserError
from ...likelihood import Estimate
from .. import records
from ..evaluation import measure_classical
from ..records import Evaluation, Protocol
from ..subjects import rows_of

Tell = Callable[[str], Callable[[int, int], None] | None]


def classical_rows(
    folder: Path, data: ImageData, images: Tensor, identity: dict[str, object], tell: Tell = lambda _: None
) -> tuple[list[Evaluation], list[str]]:
    """Rows for the classical models that suit the data, and for PNG; and one line for each that was omitted.

    Args:
        folder: Where they are stored.
        data: The data set, whose training images they are fitted to.
        images: The images to measure, in the order of their rows in the split.
        identity: What identifies these.
        tell: Returns, for a model's name, a callback of (done, count).
    """
    rows, left_out, indices = [], [], rows_of(identity)
    fitted_on = hashlib.sha256(data.train.numpy().tobytes() + data.validation.numpy().tobytes()).hexdigest()

    def add(name: str, options: dict[str, object], measure: Callable[[], Estimate]) -> None:
        protocol = Protocol(identity, fitted_on, name.lower().replace(" ", "-"), options)
        try:
            row = records.read(folder / f"{protocol.name}.json")
        except UserError:  # not there, or damaged
            model = {"run": name, "family": "classical", "parameters": None, "data": data.name}
            row = records.write(folder, protocol, model, replace(measure(), indices=indices))
        rows.append(row)

    for model in classical_models(data.train, data.validation, data.levels):
        if model.left_out:
            left_out.append(f"{model.name}: left out, {model.left_out}")
            continue
        options: dict[str, object] = {"version": model.version}
        add(
            model.name,
            options,
            lambda m=model: measure_classical(m, data.train, data.validation, images, indices, tell),
        )
    if data.shape[0] in (1, 3):
        add("PNG", {}, lambda: classical.png(images, data.levels))
    return rows, left_out
