"""Rows of arrays that stay on the disk: each is read when it is needed, from mapped files or from memory.

The pages of a mapped file are shared by all processes of a machine, and a data set may be larger than its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError

# Bytes of one piece, where all rows are gone through.
_PIECE = 2**24


class MappedRows:
    """Some rows of arrays (N_i, *shape) that lie one after another, as float32 or float64 (float16 as float32).

    Args:
        arrays: Floats of one type and shape.
        rows: The numbers of the rows, over all arrays; None for all of them.
    """

    def __init__(self, arrays: Sequence[np.ndarray], rows: Sequence[int] | np.ndarray | None = None):
        self._arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in arrays])
        self.rows = np.arange(self._ends[-1]) if rows is None else np.asarray(rows, dtype=np.int64)
        self._type = np.dtype(np.float64 if arrays[0].dtype.itemsize == 8 else np.float32)
        self.shape = (len(self.rows), *arrays[0].shape[1:])
        self.dtype = torch.float64 if self._type == np.float64 else torch.float32

    def of(self, rows: Sequence[int] | slice) -> MappedRows:
        """Some of these rows, by their places."""
        return MappedRows(self._arrays, self.rows[rows if isinstance(rows, slice) else np.asarray(rows, np.int64)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Tensor | slice | int) -> Tensor:
        """The rows at these places, read and in memory."""
        chosen = self.rows[places.cpu().numpy() if isinstance(places, Tensor) else places]
        numbers = np.atleast_1d(chosen)
        found = np.empty((len(numbers), *self.shape[1:]), self._type)
        files = np.searchsorted(self._ends, numbers, side="right")
        for file in np.unique(files):
            here = files == file
            found[here] = self._arrays[file][numbers[here] - (self._ends[file] - len(self._arrays[file]))]
        return torch.from_numpy(found if np.ndim(chosen) else found[0])

    def pieces(self) -> Iterator[Tensor]:
        """All rows, a few at a time."""
        size = max(1, _PIECE // max(1, self._type.itemsize * int(np.prod(self.shape[1:]))))
        return (self[first : first + size] for first in range(0, len(self), size))

    def __iter__(self) -> Iterator[Tensor]:
        return (row for piece in self.pieces() for row in piece)

    def to(self, device: torch.device | None) -> MappedRows | Tensor:
        """All rows in the memory of a device; None leaves them where they are."""
        return self if device is None else self[:].to(device)

    def check_finite(self, source: str) -> None:
        """Refuse numbers that are none.

        Raises:
            UserError: Naming the first by row and place, and how many rows have such.
        """
        first, bad, done = "", 0, 0
        for piece in self.pieces():
            wrong = ~torch.isfinite(piece)
            rows = wrong.flatten(1).any(1).nonzero().flatten()
            if len(rows) and not first:
                row = int(rows[0])
                place = wrong[row].nonzero()[0].tolist()
                value = float(piece[(row, *place)])
                first = f"row {self.rows[done + row]} is {value} at {place[0] if len(place) == 1 else tuple(place)}"
            bad, done = bad + len(rows), done + len(piece)
        if first:
            raise UserError(f"{source}: {first}; accepted: finite numbers ({bad:,} of {len(self):,} rows have others)")
