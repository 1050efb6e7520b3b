"""Arrays of real numbers of any shape as a data set, in the user's units, where they lie (`files.number_files`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..storage.paths import named_path
from .files.image_files import MEMBER_BYTES
from .files.mapped_rows import MappedRows
from .files.number_files import load_numbers
from .split_data import SplitData, rows_of, split_data, trained_on
from .splits import SPLITS

ARRAY = "array"
_HELD_OUT = 0.1  # of the rows for each of validation and test, where the source has none


@dataclass(frozen=True, eq=False)
class ArrayData(SplitData):
    """A data set of real numbers, split; `levels` is None."""

    train: MappedRows = field(repr=False)
    validation: MappedRows = field(repr=False)
    test: MappedRows = field(repr=False)


def load_array(path: str | Path, validation: int | float | None = None, columns: Sequence[str] = ()) -> ArrayData:
    """Map a data set of real numbers, (N, *shape).

    Args:
        path: A .npy or .npz file, or a folder of .npy files.
        validation: Number (int) or share (float) of training rows held out for validation; 10 % by default.
        columns: The keys of an .npz of what else is read of every row, to condition a model on.

    What is guessed or left out is warned of (`DataNote`), and kept in the provenance.

    Raises:
        UserError: For data that are absent, damaged or no finite real numbers; one line that names them.
    """
    raw = load_numbers(named_path(path, "data.path"), MEMBER_BYTES, columns)
    numbers = raw.images
    assert isinstance(numbers, MappedRows)
    rows, rule = rows_of(raw, validation, _HELD_OUT, _HELD_OUT)
    parts = {split: numbers.of(rows[split]) for split in SPLITS}
    shape, kind = " x ".join(map(str, numbers.shape[1:])), str(numbers.dtype).removeprefix("torch.")
    raw = replace(raw, notes=(*raw.notes, *trained_on(parts, "rows")))
    return split_data(ArrayData, ARRAY, raw, parts, rows, {"shape": shape, "type": kind, "split": rule})
