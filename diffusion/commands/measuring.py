"""The measurement itself: chunk by chunk, each kept as it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..likelihood import Estimate
from ..model import TrainedModel
from . import records
from .records import Evaluation, Protocol
from .subjects import Subject

CHUNK = 128
Progress = Callable[[int, int], None]


def measure(
    subject: Subject,
    images: Tensor,
    protocol: Protocol,
    device: torch.device,
    batch_size: int | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> tuple[Evaluation, bool]:
    """Measure images under a model, or find what was measured before.

    Args:
        subject: The model, on `device`.
        images: Level indices, uint8 of shape (B, *shape): those that `protocol.data` identifies.
        protocol: The question.
        device: Where to compute.
        batch_size: Images in a chunk, and taken together by the estimator; by default 128 a chunk, and the
            estimator's own choice.
        again: Measure anew, and replace what there is.
        progress: Called with (images done, images in all).

    Returns:
        The evaluation, and whether it was found.

    Raises:
        UserError: For a method or option that the model does not take; for a damaged record.
    """
    folder = subject.home / records.FOLDER
    if (folder / f"{protocol.name}.json").is_file() and not again:
        return records.read(folder / f"{protocol.name}.json"), True
    parts = folder / protocol.name
    if again:
        records.remove_parts(parts)
    done = {int(row) for part in records.read_parts(parts, len(images)) for row in _indices(part)}
    left = torch.tensor([row for row in range(len(images)) if row not in done], dtype=torch.long)
    for rows in left.split(batch_size or CHUNK) if len(left) else ():
        records.write_part(parts, _chunk(subject.model, images[rows].to(device), rows, protocol, batch_size))
        done |= set(rows.tolist())
        if progress is not None:
            progress(len(done), len(images))
    whole = Estimate.join(records.read_parts(parts, len(images)))
    evaluation = records.write(folder, protocol, subject.facts, whole)
    records.remove_parts(parts)
    return evaluation, False


def _chunk(model: TrainedModel, images: Tensor, rows: Tensor, protocol: Protocol, batch_size: int | None) -> Estimate:
    size = {} if batch_size is None else {"batch_size": batch_size}
    return model.log_likelihood(images, method=protocol.method, indices=rows, **size, **protocol.options)


def _indices(estimate: Estimate) -> list[int]:
    assert estimate.indices is not None
    return estimate.indices.tolist()


def question(subject: Subject, data: dict[str, Any], method: str, options: dict[str, object]) -> Protocol:
    """The protocol of measuring images of identity `data` under a model."""
    return Protocol(data, subject.weights, method, options)
