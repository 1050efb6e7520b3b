"""`quality --by-class`: the samples of each class against the images of this class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...data import ImageData
from ...data.class_names import names_of
from ...data.splits import SPLITS
from .candidates import Candidate, Progress


def of_class(data: ImageData, number: int) -> ImageData:
    """The images of one class."""
    parts = {}
    for split in SPLITS:
        labels = getattr(data, f"{split}_labels")
        chosen = labels == number
        parts |= {split: getattr(data, split)[chosen], f"{split}_labels": labels[chosen]}
    kept = (data.train_labels == number).tolist() if data.train_labels is not None else []
    names = [name for name, is_of in zip(data.train_names, kept, strict=False) if is_of]
    return replace(data, **parts, train_names=names)


def each_class(candidate: Candidate) -> Iterator[Candidate]:
    """The samples of each class of a candidate, whose whole is drawn once."""
    classes = candidate.classes
    assert classes is not None
    for number, name in enumerate(names_of(candidate.data.provenance, candidate.data.num_classes)):
        rows = (classes == number).nonzero().flatten()

        def draw(device: torch.device, progress: Progress, rows: Tensor = rows) -> tuple[Tensor, float]:
            samples, nfe = candidate.draw(device, progress)
            return samples[rows], nfe

        yield replace(
            candidate,
            name=f"{candidate.name}: {name}",
            data=of_class(candidate.data, number),
            count=len(rows),
            question={**candidate.question, "class": number, "of": candidate.count},
            draw=draw,
        )
