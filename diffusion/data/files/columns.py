"""What a source says of every row beside its data: keys of an .npz, columns of labels.csv, folders of equal names."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ...errors import UserError, did_you_mean
from ...networks.parts import CLASSES, FIELD, VECTOR
from .decoding import Decoded, ImageFile
from .mapped_rows import MappedRows
from .passed_over import ENDINGS, LABELS_FILE
from .raw_images import Column

_MOST_BYTES = 2**28  # of labels.csv
_ACCEPTED = "accepted: whole numbers or words (N,) for classes, floats (N, d) for a vector, (N, C, *sides) for a field"


def of_arrays(
    path: Path,
    name: str,
    arrays: Sequence[tuple[str, np.ndarray]],
    counts: Sequence[int],
    classes: Callable[..., tuple],
    notes: list[str],
) -> Column:
    """A column of the arrays of all splits, in their order.

    Args:
        path: The file.
        name: Of the column.
        arrays: The key and the array of each split.
        counts: The rows of each split.
        classes: Numbers classes: (path, name, arrays, notes) to (numbers, names, their count).
        notes: What was guessed is added to these.

    Raises:
        UserError: For arrays of other lengths, types or shapes, and numbers that are not finite, by row.
    """
    for (key, array), count in zip(arrays, counts, strict=True):
        told = f"{path}: '{key}' is {array.dtype} {array.shape}"
        if not array.ndim or len(array) != count:
            raise UserError(f"{told}; needs one entry for each of {count} rows")
        if array.dtype != arrays[0][1].dtype or array.shape[1:] != arrays[0][1].shape[1:]:
            raise UserError(
                f"{told}, and '{arrays[0][0]}' {arrays[0][1].dtype} {arrays[0][1].shape}; they must be alike"
            )
    key, first = arrays[0]
    told = f"{path}: '{key}' is {first.dtype} {first.shape}"
    if first.dtype.kind in "uibUS" and (first.ndim == 1 or first.shape[1:] == (1,)):
        flat = [array.reshape(-1) for _, array in arrays]
        flat = [array.astype(np.int64) if array.dtype.kind == "b" else array for array in flat]
        numbers, names, count = classes(path, key, flat, notes)
        return Column(name, CLASSES, torch.from_numpy(np.asarray(numbers, np.int64)), count, names)
    whole = np.concatenate([array for _, array in arrays])
    if first.dtype == np.uint8 and first.ndim == 4:
        channels_last = first.shape[3] in (1, 3) and first.shape[1] not in (1, 3)
        image = whole.transpose(0, 3, 1, 2) if channels_last else whole
        return Column(name, FIELD, torch.from_numpy(np.ascontiguousarray(image)), image.shape[1], (), 256)
    if first.dtype.kind != "f" or first.dtype.itemsize not in (2, 4, 8) or first.ndim > 5 or 0 in first.shape:
        raise UserError(f"{told}; {_ACCEPTED}")
    whole = whole.astype(np.float64 if first.dtype.itemsize == 8 else np.float32)
    whole = whole[:, None] if whole.ndim == 1 else whole
    MappedRows([whole]).check_finite(f"{path}: '{key}'")
    return Column(name, VECTOR if whole.ndim == 2 else FIELD, torch.from_numpy(whole), whole.shape[1])


def of_folder(
    root: Path,
    names: Sequence[str],
    files: Sequence[ImageFile],
    decode: Callable[[list[ImageFile]], Decoded],
    notes_of: Callable[[Decoded], list[str]],
    levels: int,
    classes: Callable[..., tuple],
) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of these names, for these images of a folder: from folders of the same names in it, and labels.csv.

    Args:
        root: The folder.
        names: Of the columns.
        files: The images, in the order of the rows.
        decode: Reads images as those of the data are.
        notes_of: What is to be told of images that were read.
        levels: Their levels.
        classes: As `of_arrays`.

    Returns:
        The columns, and what was guessed or left out, a line each.

    Raises:
        UserError: For a name that is neither, and an image without a value.
    """
    found, notes, table = [], list[str](), None
    for name in names:
        if (root / name).is_dir():
            decoded = decode(_paired(root, name, files, notes))
            assert isinstance(decoded.images, torch.Tensor)
            found.append(Column(name, FIELD, decoded.images, decoded.images.shape[1], (), levels))
            notes += [f"{name}: {note}" for note in notes_of(decoded)]
            continue
        if table is None:
            table = _table(root, name)
        found.append(_of_table(root / LABELS_FILE, name, table, root, files, classes, notes))
    return tuple(found), list(dict.fromkeys(notes))


def _paired(root: Path, name: str, files: Sequence[ImageFile], notes: list[str]) -> list[ImageFile]:
    """The images of the folder `name` that have the names of those of the data, or else their names but for the ending.

    Each is of one image of the data.
    """
    folder = root / name
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file() and not path.name.startswith("."):
            by_stem[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    chosen, places = [], dict[Path, str]()
    for file in files:
        place = _place(root, file)
        alike = by_stem.get(PurePosixPath(place).with_suffix("").as_posix(), [])
        found = [path for path in alike if path == folder / place] or alike
        if not found:
            raise UserError(f"{folder}: has no image for {place}; each image needs one of the same name")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder}: has {len(found)} images for {place}: {names}; needs one, or {place} itself")
        path = found[0]
        if (other := places.setdefault(path, place)) != place:
            raise UserError(f"{path}: is that of {other} and of {place}; each image needs one of its own")
        chosen.append(replace(file, described=str(path), read=path.read_bytes))
    if more := sum(map(len, by_stem.values())) - len(places):
        notes.append(f"{name}: {more:,} of its {more + len(places):,} images have the name of no image of the data")
    return chosen


def _table(root: Path, name: str) -> dict[str, dict[str, str]]:
    """labels.csv by file, then by column."""
    path = root / LABELS_FILE
    if not path.is_file():
        raise UserError(f"denoiser.condition: found '{name}'; {root} has neither a folder '{name}' nor a {LABELS_FILE}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes; more than {_MOST_BYTES:,} are refused")
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no readable table ({str(error).splitlines()[0]})") from error
    rows = [row for row in rows if row]
    head = [word.strip() for word in rows[0]] if rows else []
    if len(head) == 1 and (mark := next((mark for mark in ";\t|" if mark in head[0]), None)):
        raise UserError(f"{path}: the entries of its lines are separated by {mark!r}; accepted: commas")
    if len(rows) < 2 or len(head) < 2 or len(set(head)) < len(head):
        raise UserError(
            f"{path}: needs a first line of names, all different, file among them, and a line for each image"
        )
    at = head.index("file") if "file" in head else 0
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise UserError(f"{path}: line {number} has {len(row)} entries; the first has {len(head)} names")
        file = row[at].strip()
        if file in table:
            raise UserError(f"{path}: line {number} is the second one of {file}")
        table[file] = {word: text.strip() for i, (word, text) in enumerate(zip(head, row, strict=True)) if i != at}
    return table


def _of_table(
    path: Path,
    name: str,
    table: Mapping[str, Mapping[str, str]],
    root: Path,
    files: Sequence[ImageFile],
    classes: Callable[..., tuple],
    notes: list[str],
) -> Column:
    """A column of labels.csv, or the vector of all whose names begin with `name.`; empty entries are not known."""
    known = list(next(iter(table.values())))
    columns = [name] if name in known else [column for column in known if column.startswith(f"{name}.")]
    if not columns:
        raise UserError(
            f"denoiser.condition: found '{name}'; {path} has {', '.join(known)}, and {root} no folder of that "
            f"name.{did_you_mean(name, known)}"
        )
    texts, left = [], set(table)
    count_of = Counter(Path(file.described).name for file in files)
    for file in files:
        place, base = _place(root, file), Path(file.described).name
        row = table.get(place)
        if row is None and base in table:
            if count_of[base] > 1:
                raise UserError(
                    f"{path}: {base} is the name of {count_of[base]} images; {place} needs a line of its own"
                )
            row, place = table[base], base
        if row is None:
            raise UserError(f"{path}: has no line for {place}; needs one for each image")
        left.discard(place)
        texts.append([row[column] for column in columns])
    if left:
        notes.append(f"{LABELS_FILE}: {len(left):,} of its {len(table):,} lines are of no image, e.g. {min(left)}")
    given = [text for row in texts for text in row if text]
    if not given:
        raise UserError(f"{path}: the column {columns[0]} is empty")
    numbers = [_number(text) for text in given]
    if len(columns) == 1 and (None in numbers or all(text.lstrip("+-").isdecimal() for text in given)):
        flat = [row[0] for row in texts]
        fits = None not in numbers and max(map(len, given)) < 19  # in 64 bits
        values = [int(text) for text in given] if fits else given
        found, names, count = classes(path, columns[0], [np.array(values)], notes)
        places = iter(np.asarray(found, np.int64).tolist())
        return Column(name, CLASSES, torch.tensor([next(places) if text else count for text in flat]), count, names)
    rows = []
    for file, row in zip(files, texts, strict=True):
        entries = [_number(text) if text else float("nan") for text in row]
        for column, text, entry in zip(columns, row, entries, strict=True):
            if entry is None or (text and not np.isfinite(entry)):
                raise UserError(f"{path}: {_place(root, file)} has {column} {text!r}; the others are numbers")
        rows.append(entries if not np.isnan(np.array(entries, float)).any() else [float("nan")] * len(entries))
    return Column(name, VECTOR, torch.tensor(rows, dtype=torch.float64), len(columns))


def _place(root: Path, file: ImageFile) -> str:
    """Where an image of a folder is in it."""
    return Path(file.described).relative_to(root).as_posix()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
