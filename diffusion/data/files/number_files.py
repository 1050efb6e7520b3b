"""Arrays of real numbers of any shape: .npy files and folders of them, mapped and not read, and .npz files.

The first axis counts the data. Of the others the first is that of channels: (N, d) are vectors, (N, C, L) signals,
(N, C, H, W) images, (N, C, D, H, W) volumes. In an .npz the arrays have the names of `array_files`, or those of splits
alone (`train`, `test`); in a folder the files `train.npy`, `test-000.npy` or `train/000.npy` are of these splits, and
files without splits are one pool, in the order of their names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ..splits import SPLITS, split_of
from .array_files import find_arrays
from .mapped_rows import MappedRows
from .raw_images import RawImages

_ACCEPTED = (
    "accepted: floats of up to 64 bits (N, *shape): vectors (N, d), signals (N, C, L), images (N, C, H, W), volumes "
    "(N, C, D, H, W)"
)
_MOST_AXES = 5


def load_numbers(path: Path, most_bytes: int, columns: Sequence[str] = ()) -> RawImages:
    """The arrays of a file or a folder.

    Args:
        path: A .npy or .npz file, or a folder of .npy files.
        most_bytes: The size above which an array in an .npz is refused, where it is compressed to next to nothing.
        columns: The keys of an .npz of what else is read of every row.

    Raises:
        UserError: For what is no such file, or damaged; arrays of whole numbers, of other shapes, or with NaN and
            infinities, which are named by row and place.
    """
    if not path.exists():
        raise UserError(f"data.path: {path} does not exist; accepted: a .npy or .npz file, or a folder of .npy files")
    if not path.is_dir() and path.suffix.lower() not in (".npy", ".npz"):
        raise UserError(f"data.path: {path} is no array; accepted: a .npy or .npz file, or a folder of .npy files")
    labels, class_names, count, notes, read = None, (), 0, [], ()
    if path.suffix.lower() == ".npz" and not path.is_dir():
        found = find_arrays(path, most_bytes, "arrays", columns)
        parts = {split: [(f"{path}: '{found.names[split]}'", array)] for split, array in found.data.items()}
        labels, class_names, count, notes = found.labels, found.class_names, found.num_classes, found.notes
        read = found.columns
    elif columns:
        raise UserError(f"denoiser.condition: found '{columns[0]}'; {path} has arrays alone; an .npz has keys")
    else:
        parts = _of_folder(path) if path.is_dir() else {"": [(str(path), _mapped(path))]}
    named = [file for split in ("", *SPLITS) for file in parts.get(split, ())]
    arrays = [_numbers(name, array) for name, array in named]
    for (name, _), array in zip(named, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:] or array.dtype != arrays[0].dtype:
            raise UserError(
                f"{name}: is {array.dtype} {array.shape}, and {named[0][0]} is {arrays[0].dtype} {arrays[0].shape}; "
                "all must have one type and, after the first axis, one shape"
            )
    for (name, _), array in zip(named, arrays, strict=True):
        MappedRows([array]).check_finite(name)
    rows = MappedRows(arrays)
    if len(rows) and bool((rows[: 2**10] == rows[: 2**10].round()).all()):
        notes = [
            *notes,
            "the numbers are whole: a density of such data grows without bound as the model finds them out",
        ]
    ranges, first = {}, 0
    for split in ("", *SPLITS):
        if split in parts:
            length = sum(len(array) for _, array in parts[split])
            ranges[split or "train"] = range(first, first + length)
            first += length
    return RawImages(
        images=rows,
        labels=None if labels is None else torch.from_numpy(labels),
        keys=[str(row) for part in ranges.values() for row in range(len(part))],
        parts=ranges,
        source=str(path),
        levels=None,
        num_classes=count,
        class_names=class_names,
        notes=tuple(dict.fromkeys(notes)),
        columns=read,
    )


def _of_folder(path: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """The files of a folder by their split, in the order of their names."""
    try:
        files = sorted(file for file in path.rglob("*.npy") if file.is_file() and not file.name.startswith("."))
    except PermissionError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror})") from error
    if not files:
        raise UserError(f"data.path: the folder {path} holds no .npy file; {_ACCEPTED}")
    parts: dict[str, list[tuple[str, np.ndarray]]] = {}
    for file in files:
        inside = file.relative_to(path)
        word = inside.parts[0] if len(inside.parts) > 1 else re.split(r"[^A-Za-z]", file.stem, maxsplit=1)[0]
        parts.setdefault(split_of(word) or "", []).append((str(file), _mapped(file)))
    if "" in parts and len(parts) > 1:
        other = parts[""][0][0]
        raise UserError(
            f"{other}: is of no split, and other files are; accepted: all of train, validation, test, or none"
        )
    if "" not in parts and "train" not in parts:
        raise UserError(f"data.path: {path} has files of {', '.join(parts)}, and none of train")
    return parts


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # of the header, of the mapping, of a pickle: each has its own class
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: is not a readable .npy file of plain numbers ({reason})") from error


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    """An array of floats (N, *shape); one number a sample is a vector of one."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        whole = array.dtype.kind in "iub"
        hint = "; whole numbers have no density: data.name=folder reads grey levels" if whole else ""
        raise UserError(f"{name}: is {array.dtype} {array.shape}; {_ACCEPTED}{hint}")
    if not 1 <= array.ndim <= _MOST_AXES or 0 in array.shape:
        raise UserError(f"{name}: has the shape {array.shape}; {_ACCEPTED}")
    return array[:, None] if array.ndim == 1 else array
