"""What every reader of data hands over: all rows, and which of them the source assigns to a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from .mapped_rows import MappedRows

OPACITY = "opacity"  # in the provenance of images whose last channel is that


@dataclass(frozen=True, eq=False)
class Column:
    """What a source says of every row in addition to its data and its class: what a model can be conditioned on.

    Args:
        name: Its name in the source.
        kind: `classes`, `vector` or `field` (`networks.parts`).
        values: Classes (N,), int64, `size` where it is not known; real numbers (N, d), NaN where they are not known; or
            (N, C, *sides).
        size: The number of classes, entries or channels.
        names: Of the classes, where these are no numbers from 0.
        levels: Of a field of level indices, whose values are brought to [-1, 1]; None for real numbers.
    """

    name: str
    kind: str
    values: Tensor
    size: int
    names: tuple[str, ...] = ()
    levels: int | None = None


@dataclass(frozen=True, eq=False)
class RawImages:
    """All data of a source, before the split.

    Args:
        images: Level indices, shape (N, C, H, W), in 0 .. levels - 1, or real numbers (N, *shape).
        labels: Classes, shape (N,), or None.
        keys: One text a row (a file name, or the index): what the hashed split sorts by.
        parts: Rows of each split that the source gives: "train" always; "validation" and "test" where it has them.
        source: Where the images come from, in words.
        levels: Number of values that a channel can take; None for real numbers.
        num_classes: Number of classes, 0 without labels.
        class_names: Names of the classes, in the order of the labels; empty where they have none.
        rule: How the splits were made, where `parts` are all three of them already.
        skipped: The files that could not be read and were left out.
        notes: What was guessed or left out, and why, a line each.
        columns: What else it says of every row, of what was requested.
        opacity: Whether the last channel is opacity.
    """

    images: Tensor | MappedRows
    labels: Int64[Tensor, " n"] | None
    keys: Sequence[str]
    parts: dict[str, range]
    source: str
    levels: int | None = 256
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    rule: str | None = None
    skipped: int = 0
    notes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    opacity: bool = False
