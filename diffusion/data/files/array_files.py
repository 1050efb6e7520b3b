"""Images in .npz and .npy files, under the names that people give them.

An array's name says what it is (`images`, `x`, `data`; `labels`, `y`, `targets`) and perhaps its split (`train_images`,
`x_test`: Keras, MedMNIST; `test` alone is data); `arr_0` and `arr_1` are the images and the labels of improved- and
guided-diffusion.
Levels are whole numbers from 0 to 255 of any type, or numbers in [0, 1] or [-1, 1] that are exactly these.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError, did_you_mean
from ..class_names import listed
from ..splits import SPLITS, split_of
from .alike import EIGHT_BITS, Alike
from .columns import of_arrays
from .decoding import refuse_unused_bits
from .fitting import Size, check_memory, resize_arrays, room_for
from .raw_images import Column, RawImages

ENDINGS = (".npz", ".npy")
_MOST_DEFLATED = 200  # times smaller: photographs are two or three, empty pages a thousand
_IMAGES = ("images", "image", "imgs", "img", "x", "data", "pixels", "samples", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "arr_1")
_MOST_CHANNELS = 32  # of images that are neither grey nor colour
_ACCEPTED = f"accepted: uint8 (N, H, W) or (N, H, W, C), C = 1, 3, or up to {_MOST_CHANNELS} and below H and W"
_FEWER = "fewer or smaller images"
_PIECE = 2**21  # numbers that are compared with levels at a time
_CLASS_NAMES = ("classes", "class_names", "label_names")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class FoundArrays:
    """What the names in a file say.

    Attributes:
        data: The arrays of data by split, or one under "".
        names: Their names.
        labels: Of all data, in that order, as numbers from 0; None without labels.
        num_classes, class_names, notes, columns: As `RawImages`.
    """

    data: Arrays
    names: dict[str, str]
    labels: np.ndarray | None
    num_classes: int
    class_names: tuple[str, ...]
    notes: list[str]
    columns: tuple[Column, ...] = ()


def load_arrays(
    path: Path,
    size: Size | None,
    most_bytes: int,
    how: Alike = EIGHT_BITS,
    columns: Sequence[str] = (),
) -> RawImages:
    """Read the images, and perhaps labels, of a .npz or .npy file.

    Args:
        path: The file.
        size: Resize the shorter side to this and crop the centre.
        most_bytes: The size above which an array is refused, where it is compressed to next to nothing.
        how: In which levels.
        columns: The keys of what else is read of every row.

    Raises:
        UserError: For a file that is damaged or unsafe, arrays that are no images, and names that say too little.
    """
    found = find_arrays(path, most_bytes, "images", columns)
    of = how.used if how.whole else None
    images = [_images(path, found.names[split], array, found.notes, of) for split, array in found.data.items()]
    if how.whole and how.bits is None:
        refuse_unused_bits([int(max(x.max() for x in images))])
    if len({x.shape[1:] for x in images}) > 1:
        shapes = ", ".join(f"{name} {x.shape[1:]}" for name, x in zip(found.names.values(), images, strict=True))
        raise UserError(f"{path}: the splits differ in shape: {shapes} (height, width, channels)")
    lengths = [len(x) for x in images]
    ends = np.cumsum(lengths).tolist()
    (height, width, channels), kind = images[0].shape[1:], torch.from_numpy(images[0][:1]).dtype
    held = sum(x.nbytes for x in images)
    pixels = room_for((ends[-1], channels, height, width), kind, _FEWER, "data.path", held)
    for x, end in zip(images, ends, strict=True):
        pixels.numpy()[end - len(x) : end] = x.transpose(0, 3, 1, 2)
    parts = {split or "train": range(end - n, end) for split, n, end in zip(found.data, lengths, ends, strict=True)}
    return RawImages(
        images=resize_arrays(pixels, size, how.levels),
        labels=None if found.labels is None else torch.from_numpy(found.labels),
        keys=[str(row) for length in lengths for row in range(length)],
        parts=parts,
        source=str(path),
        levels=how.levels,
        num_classes=found.num_classes,
        class_names=found.class_names,
        notes=tuple(dict.fromkeys(found.notes)),
        columns=found.columns,
    )


def find_arrays(path: Path, most_bytes: int, kind: str, columns: Sequence[str] = ()) -> FoundArrays:
    """The arrays of data in a .npz or .npy file by their names, and their labels.

    Args:
        path, most_bytes: As `load_arrays`.
        kind: What the data are called in errors: images or arrays.
        columns: The keys of what else is read of every row.

    Raises:
        UserError: For a file that is damaged or unsafe, and names that say too little.
    """
    arrays = _read(path, most_bytes, _FEWER if kind == "images" else "a .npy, which is mapped and not read,")
    notes: list[str] = []
    keys = {name: _keys(arrays, name) for name in columns}
    taken = {key for of_name in keys.values() for key in of_name.values()}
    found = _roles(path, {name: array for name, array in arrays.items() if name not in taken})
    splits = [split for split in ("", *SPLITS) if ("images", split) in found]
    if not splits:
        if own := next((name for name in columns if name.lower() in _IMAGES), None):
            raise UserError(
                f"denoiser.condition: found '{own}'; it is the data of {path}, which has {', '.join(arrays)}"
            )
        names = ", ".join(arrays) or "nothing"
        raise UserError(
            f"{path}: has no array '{'images' if kind == 'images' else 'x'}'; found: {names}. Accepted: images, x, "
            "data, arr_0, or one a split (train_images, x_test), with labels, y, arr_1"
        )
    if splits != [""] and ("" in splits or "train" not in splits):
        names = ", ".join(found["images", split] for split in splits)
        raise UserError(f"{path}: found the {kind} {names}; accepted: one array, or one a split, train among them")
    images = {split: arrays[found["images", split]] for split in splits}
    for split, array in images.items():
        if not array.ndim:
            raise UserError(f"{path}: '{found['images', split]}' is one number; accepted: an array of {kind}")
    labelled = [split for split in splits if ("labels", split) in found]
    labels, class_names, count = None, (), 0
    if labelled == splits:
        raw = [_flat(path, found["labels", split], arrays[found["labels", split]], len(x), notes)
               for split, x in images.items()]  # fmt: skip
        labels, class_names, count = number_classes(path, found["labels", splits[0]], raw, notes)
    read = tuple(_column(path, name, keys[name], arrays, images, notes) for name in columns)
    used = taken | {found[role, split] for role, split in found if role == "images" or labels is not None}
    if labels is not None and not class_names and (naming := _names_of_classes(arrays, count)) is not None:
        class_names = tuple(arrays[naming].tolist())
        used.add(naming)
    for name, array in arrays.items():
        if name not in used:
            each = ", one entry an image" if array.shape[:1] == (len(images[splits[0]]),) else ""
            notes.append(f"the array '{name}' ({array.dtype} {array.shape}{each}) is not used")
    names = {split: found["images", split] for split in splits}
    return FoundArrays(images, names, labels, count, class_names, notes, read)


def _keys(arrays: Arrays, name: str) -> dict[str, str]:
    """The keys of a column by split: `c`, or `train_c` and `c_test`."""
    found = {"": name} if name in arrays else {}
    for key in arrays:
        words = key.split("_")
        for i, word in enumerate(words):
            if (split := split_of(word)) is not None and "_".join(words[:i] + words[i + 1 :]) == name:
                found[split] = key
    return found


def _column(path: Path, name: str, keys: Mapping[str, str], arrays: Arrays, data: Arrays, notes: list[str]) -> Column:
    """What is read of every row under a name, in the order of the data.

    Raises:
        UserError: Where there is none, of one of the splits.
    """
    for split in data:
        if split not in keys:
            of_split = f" of the {split} split" if split else ""
            raise UserError(
                f"denoiser.condition: found '{name}'; {path} has no such array{of_split}; it has {', '.join(arrays)}."
                f"{f' Accepted: {split}_{name}' if name in arrays else did_you_mean(name, arrays)}"
            )
    named = [(keys[split], arrays[keys[split]]) for split in data]
    return of_arrays(path, name, named, [len(array) for array in data.values()], number_classes, notes)


def _read(path: Path, most_bytes: int, instead: str) -> Arrays:
    """All arrays of a file, in memory; `instead` says what would do where that has no room for them."""
    try:
        if path.suffix.lower() == ".npy":
            check_memory(path.stat().st_size, f"data.path: {path}", instead)
            with path.open("rb") as file:
                return {"images": np.lib.format.read_array(file, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                if member.file_size > max(most_bytes, _MOST_DEFLATED * member.compress_size):
                    raise UserError(
                        f"{path}: {member.filename} unpacks to {member.file_size:,} bytes from "
                        f"{member.compress_size:,}; no images do that, and it is refused."
                    )
        check_memory(sum(member.file_size for member in members), f"data.path: {path}", instead)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        for name, array in found.items():
            if not isinstance(array, np.ndarray):  # the bytes of a file of another kind
                raise UserError(f"{path}: '{name}' in it is no array; accepted: arrays, as numpy.savez writes")
        return found
    except UserError:
        raise
    except Exception as error:  # zip, header and pickle errors each have their own class
        raise UserError(f"{path}: is not a readable {path.suffix} file of plain arrays ({error}).") from error


def _roles(path: Path, arrays: Arrays) -> dict[tuple[str, str], str]:
    """The names of arrays by what they are, (`images` or `labels`, split or none).

    Where several may be, `images` or `labels` itself is meant; else those that are no images, or no labels of these
    images (masks, numbers to regress on, names of classes), are passed over.
    """
    named: dict[tuple[str, str], dict[str, str]] = {}
    for name in arrays:
        word, split = name.lower(), ""
        if word not in _IMAGES + _LABELS:
            words = re.findall(r"[a-z]+", word)
            split = next(filter(None, map(split_of, words)), "")
            rest = [word for word in words if split_of(word) is None]
            if not split or len(rest) > 1:
                continue
            word = rest[0] if rest else "data"
        if word in _IMAGES + _LABELS:
            named.setdefault(("images" if word in _IMAGES else "labels", split), {})[name] = word
    found: dict[tuple[str, str], str] = {}
    for role, split in sorted(named):  # images first
        of_role = named[role, split]
        images = found.get(("images", split))
        chosen = [name for name, word in of_role.items() if word == role] or list(of_role)
        if of_role[chosen[0]] != role and role == "labels" and images is not None:
            chosen = [name for name in chosen if _are_labels(path, name, arrays[name], len(arrays[images]))]
        elif len(chosen) > 1 and role == "images":
            chosen = [name for name in chosen if arrays[name].ndim in (3, 4)] or chosen
        if len(chosen) > 1:
            raise UserError(
                f"{path}: '{chosen[0]}' and '{chosen[1]}' may both be the {split} {role}".replace("  ", " ")
            )
        if chosen:
            found[role, split] = chosen[0]
    return found


def _are_labels(path: Path, name: str, array: np.ndarray, n: int) -> bool:
    try:
        _flat(path, name, array, n, [])
    except UserError:
        return False
    return True


def _names_of_classes(arrays: Arrays, count: int) -> str | None:
    """The array that holds the names of so many classes, all different, in the order of their numbers."""
    for name, array in arrays.items():
        is_of_all = name.lower() in _CLASS_NAMES and array.dtype.kind == "U" and array.shape == (count,)
        if is_of_all and len(set(array.tolist()) - {""}) == count:
            return name
    return None


def _images(path: Path, name: str, array: np.ndarray, notes: list[str], bits: int | None) -> np.ndarray:
    """Level indices (N, H, W, C): uint8, or int32 for `bits`."""
    described = f"{path}: '{name}' is {array.dtype} {array.shape}"
    last, second = (array.ndim == 4 and _are_channels(array.shape, axis) for axis in (3, 1))
    second = second and min(array.shape[2:]) > 4  # else its last axis may be of channels
    if array.dtype.kind not in "uifb" or array.ndim not in (3, 4) or (array.ndim == 4 and not (last or second)):
        raise UserError(f"{described}; {_ACCEPTED}.")
    if array.size == 0:
        raise UserError(f"{path}: no image found: '{name}' has shape {array.shape}.")
    if array.ndim == 3:
        array = array[..., None]
    elif not last:
        notes.append(f"'{name}' {array.shape} is taken as (N, C, H, W)")
        array = array.transpose(0, 2, 3, 1)
    elif array.shape[1] in (1, 3) and array.shape[1] != array.shape[3]:
        notes.append(f"'{name}' {array.shape} is taken as (N, H, W, C), though it may be (N, C, H, W)")
    if bits is not None:
        if array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) >= 2**bits:
            span = f", {array.min():g} to {array.max():g}"
            raise UserError(f"{described}{span}; data.levels=all takes whole numbers from 0 to {2**bits - 1:,}")
        if bits > 8 and array.dtype.itemsize == 1:
            raise UserError(f"{described}, of no more than 8 bits; leave out data.levels=all")
        return array.astype(np.int32)
    return array if array.dtype == np.uint8 else _levels(described, name, array, notes)


def _are_channels(shape: tuple[int, ...], axis: int) -> bool:
    """Whether an axis of (N, H, W, C) or (N, C, H, W) is of channels: 1 or 3, or a few, and fewer than the others."""
    count, others = shape[axis], [side for i, side in enumerate(shape) if i not in (0, axis)]
    return count in (1, 3) or 1 < count <= min(_MOST_CHANNELS, min(others) - 1)


def _levels(described: str, name: str, array: np.ndarray, notes: list[str]) -> np.ndarray:
    """Numbers of another type as levels, where these are meant without doubt."""
    if array.dtype.kind == "b":
        notes.append(f"'{name}' is bool: taken as the levels 0 and 255")
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(), array.max()
    ranges = {"": (0, 255, lambda x: x)}
    if array.dtype.kind == "f":
        unit, signed = (0, 1, lambda x: x * 255.0), (-1, 1, lambda x: (x + 1.0) * 127.5)
        ranges = {"[0, 1]": unit, "[-1, 1]": signed, **ranges} if low < high else {}
    for kind, (least, most, to_levels) in ranges.items():
        if least <= low and high <= most and (levels := _exact(array, to_levels)) is not None:
            notes.append(f"'{name}' is {array.dtype}, {low:g} to {high:g}{f' in {kind}' if kind else ''}: exactly "
                         "8-bit levels, and taken as these")  # fmt: skip
            return levels
    raise UserError(
        f"{described}, {low:g} to {high:g}; {_ACCEPTED}; or numbers that are exactly 8-bit levels: whole from 0 to "
        f"255, k / 255 in [0, 1], or k / 127.5 - 1 in [-1, 1].{_other_way(array, float(low), float(high))}"
    )


def _other_way(array: np.ndarray, low: float, high: float) -> str:
    """How numbers that are no 8-bit levels are read."""
    if array.dtype.kind == "f":
        return " data.name=array takes any numbers." if np.isfinite(low) and np.isfinite(high) else ""
    return " data.levels=all takes whole numbers of up to 16 bits." if low >= 0 and high < 2**16 else ""


def _exact(array: np.ndarray, to_levels: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """Numbers as levels, uint8, where they are exactly these; in pieces, whose float64 is small."""
    # float16 is 2^-11 off at most, of 255; float32 and float64 far less
    most = 0.07 if array.dtype == np.float16 else 1e-3
    found, rows = np.empty(array.shape, np.uint8), max(1, _PIECE // array[0].size)
    for first in range(0, len(array), rows):
        levels = to_levels(array[first : first + rows].astype(np.float64))
        whole = np.rint(levels)
        if np.abs(levels - whole).max() > most:
            return None
        found[first : first + rows] = whole
    return found


def _flat(path: Path, name: str, labels: np.ndarray, n: int, notes: list[str]) -> np.ndarray:
    """Labels as (N,): also from (N, 1), and from (N, K) where exactly one entry a row is 1 and the others are 0."""
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    elif labels.ndim == 2 and len(labels) == n and labels.dtype.kind in "uifb":
        numbers = labels.astype(np.float64)
        if ((numbers == 0) | (numbers == 1)).all() and (numbers.sum(1) == 1).all():
            notes.append(f"'{name}' {labels.shape} has one 1 a row: taken as the place of it")
            return labels.argmax(1)
    whole = labels.dtype.kind == "f" and bool(np.isfinite(labels).all() and (labels == np.rint(labels)).all())
    if labels.shape != (n,) or not (whole or labels.dtype.kind in "uibUS"):
        raise UserError(
            f"{path}: '{name}' is {labels.dtype} {labels.shape}; accepted: integers from 0, or names, shape ({n},)."
        )
    return labels.astype(np.int64) if whole or labels.dtype.kind == "b" else labels


def number_classes(
    path: Path, name: str, labels: list[np.ndarray], notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Labels of all splits as numbers from 0, the names of the classes where they are no such numbers, their count."""
    known, numbers = np.unique(np.concatenate(labels), return_inverse=True)
    if known.dtype.kind == "S":
        return numbers, tuple(text.decode("utf-8", "replace") for text in known.tolist()), len(known)
    names = tuple(str(text) for text in known.tolist())
    if known.dtype.kind in "iu":
        if known[0] < 0:
            raise UserError(f"{path}: '{name}' holds {known[0]} to {known[-1]}; accepted: integers from 0.")
        if known[-1] == len(known) - 1:
            return numbers, (), len(known)
        notes.append(
            f"'{name}' holds {len(known):,} numbers from {known[0]:,} to {known[-1]:,}; they are the names of classes "
            f"numbered anew by their order: {listed([f'{i} is {text}' for i, text in enumerate(names)])}"
        )
    return numbers, names, len(known)
