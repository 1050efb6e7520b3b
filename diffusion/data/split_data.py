"""A data set in three parts: what holds for images and for arrays of numbers alike.

The split is part of the data set and never depends on a seed (see `splits.py`); what was read is recorded in
`provenance`, with the SHA-256 of each split's bytes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from ..networks.parts import CLASSES
from .class_names import listed
from .files.mapped_rows import MappedRows
from .files.raw_images import Column, RawImages
from .splits import SPLITS, split_rows

Rows = Mapping[str, slice | list[int]]


class DataNote(UserWarning):
    """Something in a source of data was guessed, or left out."""


@dataclass(frozen=True, eq=False)
class SplitData:
    """A data set, split.

    Args:
        name: Its name, as `data.name` has it.
        train, validation, test: Level indices or real numbers, shapes (N, *shape); validation may be empty.
        train_labels, validation_labels, test_labels: Classes 0 .. num_classes - 1, shapes (N,), or None.
        levels: Number of values that a channel can take (17 for digits, else 256); None for real numbers.
        num_classes: Number of classes, 0 without labels.
        flip: Whether horizontal flips are a valid augmentation of the training images.
        provenance: Source, sizes, split rule, SHA-256 of each split's bytes and labels, names of the classes, and what
            was guessed or left out (`notes`), as plain text and numbers.
        columns: What else the source says of every row, by name, then by split (`Column.values` of these rows).
        train_names: The files of the training images, or their numbers in the source where they are no files.
    """

    name: str
    train: Tensor | MappedRows = field(repr=False)
    train_labels: Int64[Tensor, " n_train"] | None = field(repr=False)
    validation: Tensor | MappedRows = field(repr=False)
    validation_labels: Int64[Tensor, " n_validation"] | None = field(repr=False)
    test: Tensor | MappedRows = field(repr=False)
    test_labels: Int64[Tensor, " n_test"] | None = field(repr=False)
    levels: int | None
    num_classes: int
    flip: bool
    provenance: dict[str, str | int | float] = field(repr=False)
    train_names: Sequence[str] = field(default=(), repr=False)
    columns: Mapping[str, Mapping[str, Column]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.shape[1:])


DataT = TypeVar("DataT", bound=SplitData)


def rows_of(
    raw: RawImages, validation: int | float | None, default_fraction: float, test_fraction: float
) -> tuple[Rows, str]:
    """The rows of each split, as slices (views, not copies) where the data lie in their order, and the rule in words.

    Raises:
        UserError: As `split_rows`.
    """
    if raw.rule is not None:
        return {split: slice(raw.parts[split].start, raw.parts[split].stop) for split in SPLITS}, raw.rule
    return split_rows(raw.keys, raw.parts, validation, default_fraction, test_fraction)


def split_data(
    kind: type[DataT],
    name: str,
    raw: RawImages,
    parts: Mapping[str, Any],
    rows: Rows,
    about: Mapping[str, str | int | float],
    flip: bool = False,
) -> DataT:
    """The data set of a source, of this kind; its notes are warned of.

    Args:
        kind: `SplitData`, or one of its kinds.
        name: The name of the data set.
        raw: All that was read.
        parts: The data of each split.
        rows: Their rows.
        about: What the provenance says of them, with the rule of the split.
        flip: As `SplitData`.
    """
    labels = {split: None if raw.labels is None else raw.labels[rows[split]] for split in SPLITS}
    columns = {
        column.name: {split: replace(column, values=column.values[rows[split]]) for split in SPLITS}
        for column in raw.columns
    }
    raw = replace(raw, notes=(*raw.notes, *_untrained(raw, labels["train"], columns)))
    for note in raw.notes:
        warnings.warn(f"data.path: {note}", DataNote, stacklevel=3)
    split = about["split"]
    provenance: dict[str, str | int | float] = {
        "name": name,
        "source": raw.source,
        **{key: value for key, value in about.items() if key != "split"},
        "classes": ", ".join(raw.class_names) or raw.num_classes,
        **({"class_names": json.dumps(raw.class_names)} if raw.class_names else {}),
        "split": split,
        **({"skipped": raw.skipped} if raw.skipped else {}),
        **({"notes": "\n".join(raw.notes)} if raw.notes else {}),
    }
    for split in SPLITS:
        provenance[f"{split}_images"] = len(parts[split])
        provenance[f"{split}_sha256"] = _sha256(parts[split])
        if (of_split := labels[split]) is not None:
            provenance[f"{split}_labels_sha256"] = _sha256(of_split)
        if columns:
            each = "".join(f"{name} {_sha256(of[split].values)} " for name, of in columns.items())
            provenance[f"{split}_condition_sha256"] = hashlib.sha256(each.encode()).hexdigest()
    chosen = rows["train"]
    return kind(
        name=name,
        train=parts["train"],
        train_labels=labels["train"],
        validation=parts["validation"],
        validation_labels=labels["validation"],
        test=parts["test"],
        test_labels=labels["test"],
        levels=raw.levels,
        num_classes=raw.num_classes,
        flip=flip,
        provenance=provenance,
        train_names=raw.keys[chosen] if isinstance(chosen, slice) else [raw.keys[i] for i in chosen],
        columns=columns,
    )


def _untrained(raw: RawImages, labels: Tensor | None, columns: Mapping[str, Mapping[str, Column]]) -> Iterator[str]:
    """A line for each set of classes of which some have no training data, and each column that is the same in all."""
    of, what = "training image" if raw.levels is not None else "training row", " is of the class "
    if labels is not None and (left := _absent(labels, raw.num_classes, raw.class_names)):
        yield f"no {of}{what}{left}"
    for name, column in ((name, by_split["train"]) for name, by_split in columns.items()):
        if column.kind == CLASSES and (left := _absent(column.values, column.size, column.names)):
            yield f"{name}: no {of}{what}{left}"
        if len(column.values) > 1 and torch.equal(column.values, column.values[:1].expand_as(column.values)):
            yield f"{name}: is the same in each {of}, and tells nothing of it"


def _absent(classes: Tensor, count: int, names: Sequence[str]) -> str:
    """The classes below `count` that are none of these, by name or number, in a line."""
    there = set(classes.unique().tolist())
    return listed([names[i] if names else str(i) for i in range(count) if i not in there])


def trained_on(parts: Mapping[str, Tensor | MappedRows], what: str = "images") -> list[str]:
    """A line for each split that holds data of the training set, to the bit: its figures flatter the model."""
    held_out = {split: [hash(x.numpy().tobytes()) for x in parts[split]] for split in SPLITS[1:]}
    wanted = {key for keys in held_out.values() for key in keys}
    known = {key for x in parts["train"] if (key := hash(x.numpy().tobytes())) in wanted} if wanted else set()
    counts = {split: sum(key in known for key in keys) for split, keys in held_out.items()}
    return [
        f"{count:,} of {len(held_out[split]):,} {split} {what} are training {what}, too, to the bit"
        for split, count in counts.items()
        if count
    ]


def _sha256(data: Tensor | MappedRows) -> str:
    found = hashlib.sha256()
    for piece in data.pieces() if isinstance(data, MappedRows) else (data,):
        found.update(piece.contiguous().numpy().data)
    return found.hexdigest()
