"""`quality --by-class`: the samples of each class against the images of this class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...data import ImageData
from ...data.class_names import names_of
from ...data.splits import SPLITS
from ...denoisers.condition import LABEL
from .candidates import Candidate, Progress


def of_class(data: ImageData, name: str, number: int) -> ImageData:
    """The images of one class: of the label, or of a column of the source by its name."""
    parts: dict[str, Tensor] = {}
    rows = {split: _classes(data, name, split) == number for split in SPLITS}
    for split, chosen in rows.items():
        parts[split] = getattr(data, split)[chosen]
        if (labels := getattr(data, f"{split}_labels")) is not None:
            parts[f"{split}_labels"] = labels[chosen]
    names = [image for image, is_of in zip(data.train_names, rows["train"].tolist(), strict=False) if is_of]
    return replace(data, **parts, train_names=names)


def _classes(data: ImageData, name: str, split: str) -> Tensor:
    found = getattr(data, f"{split}_labels") if name == LABEL else data.columns[name][split].values
    assert isinstance(found, Tensor)
    return found


def _names(data: ImageData, name: str) -> Mapping[int, str]:
    """What the classes are called: those of a column next to its name."""
    if name == LABEL:
        return dict(enumerate(names_of(data.provenance, data.num_classes)))
    column = data.columns[name]["train"]
    return {number: f"{name} {(column.names or range(column.size))[number]}" for number in range(column.size)}


def each_class(candidate: Candidate) -> Iterator[Candidate]:
    """The samples of each class of a candidate, whose whole is drawn once; of several columns, of each."""
    for part, classes in candidate.classes.items():
        for number, name in _names(candidate.data, part).items():
            rows = (classes == number).nonzero().flatten()

            def draw(device: torch.device, progress: Progress, rows: Tensor = rows) -> tuple[Tensor, float]:
                samples, nfe = candidate.draw(device, progress)
                return samples[rows], nfe

            of_column = {} if part == LABEL else {"class_of": part}
            yield replace(
                candidate,
                name=f"{candidate.name}: {name}",
                data=of_class(candidate.data, part, number),
                count=len(rows),
                question={**candidate.question, "class": number, **of_column, "of": candidate.count},
                draw=draw,
            )
