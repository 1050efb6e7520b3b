"""The measurement itself: chunk by chunk, each kept as it is done; then the rest of its error budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..likelihood import Estimate
from ..likelihood.error_budget import complete
from ..model import TrainedModel
from . import records
from .records import Evaluation, Protocol
from .subjects import Subject

CHUNK = 128
# The parts of images that are measured again, for the error budget.
_AGAIN = "again-"
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
    bench = Bench(subject.model, images, protocol, folder / protocol.name, device, batch_size)
    if again:
        bench.clear()
    whole = bench(torch.arange(len(images)), {}, progress)
    evaluation = records.write(folder, protocol, subject.facts, complete(whole, bench))
    bench.clear()
    return evaluation, False


class Bench:
    """Measures images under changes of a question; each chunk is kept as it is done, and none is measured twice.

    Args:
        model: The model, on `device`.
        images: All the images, level indices.
        protocol: The question.
        parts: The folder of the parts; those under changed options are in folders of their own within.
        device, batch_size: As of `measure`.
    """

    def __init__(
        self,
        model: TrainedModel,
        images: Tensor,
        protocol: Protocol,
        parts: Path,
        device: torch.device,
        batch_size: int | None = None,
    ):
        self.model, self.images, self.protocol = model, images, protocol
        self.parts, self.device, self.batch_size = parts, device, batch_size

    def __call__(self, rows: Tensor, changes: Mapping[str, Any], progress: Progress | None = None) -> Estimate:
        """The estimate of all the images that were ever asked for under these changes, `rows` among them."""
        parts = self.parts / f"{_AGAIN}{_digest(changes)}" if changes else self.parts
        protocol = replace(self.protocol, options={**self.protocol.options, **changes})
        done = {int(row) for part in records.read_parts(parts, len(self.images)) for row in _indices(part)}
        left = torch.tensor([row for row in rows.tolist() if row not in done], dtype=torch.long)
        for some in left.split(self.batch_size or CHUNK) if len(left) else ():
            images = self.images[some].to(self.device)
            records.write_part(parts, _chunk(self.model, images, some, protocol, self.batch_size))
            done |= set(some.tolist())
            if progress is not None:
                progress(len(done), len(rows))
        return Estimate.join(records.read_parts(parts, len(self.images)))

    def clear(self) -> None:
        """Remove all parts."""
        for folder in (*self.parts.glob(f"{_AGAIN}*"), self.parts):
            records.remove_parts(folder)


def _digest(changes: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:12]


def _chunk(model: TrainedModel, images: Tensor, rows: Tensor, protocol: Protocol, batch_size: int | None) -> Estimate:
    size = {} if batch_size is None else {"batch_size": batch_size}
    return model.log_likelihood(images, method=protocol.method, indices=rows, **size, **protocol.options)


def _indices(estimate: Estimate) -> list[int]:
    assert estimate.indices is not None
    return estimate.indices.tolist()


def question(subject: Subject, data: dict[str, Any], method: str, options: dict[str, object]) -> Protocol:
    """The protocol of measuring images of identity `data` under a model."""
    return Protocol(data, subject.weights, method, options)
