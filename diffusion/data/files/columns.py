"""What else a source says of every row: keys of an .npz, columns of labels.csv, folders of equal names."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ...errors import UserError, did_you_mean
from ...networks.parts import CLASSES, FIELD, LABEL, VECTOR
from .decoding import Decoded, ImageFile
from .fitting import check_memory
from .mapped_rows import MappedRows
from .passed_over import ENDINGS, LABELS_FILE, is_hidden
from .raw_images import Column
from .tar_shards import read_member

_MOST_BYTES = 2**28  # of labels.csv
_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, csv.Error, zlib.error, zipfile.BadZipFile, tarfile.TarError)
_Found = tuple[str, str, int, Callable[[], bytes]]  # of a table: its name, its folder, its size, its bytes
_ACCEPTED = (
    "accepted: whole numbers or words (N,) for classes, floats (N, d) for a vector, floats (N, C, *sides) or uint8 "
    "images for a field"
)


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
    twice = 2 * sum(array.nbytes for _, array in arrays)
    check_memory(twice, f"data.path: '{name}' of {path}", "fewer or smaller entries")
    for (key, array), count in zip(arrays, counts, strict=True):
        where = f"{path}: '{key}' is {array.dtype} {array.shape}"
        if not array.ndim or len(array) != count:
            raise UserError(f"{where}; needs one entry for each of {count} rows")
        if array.dtype != arrays[0][1].dtype or array.shape[1:] != arrays[0][1].shape[1:]:
            raise UserError(
                f"{where}, and '{arrays[0][0]}' {arrays[0][1].dtype} {arrays[0][1].shape}; they must be alike"
            )
    key, first = arrays[0]
    where = f"{path}: '{key}' is {first.dtype} {first.shape}"
    if first.dtype.kind in "uibUS" and (first.ndim == 1 or first.shape[1:] == (1,)):
        flat = [array.reshape(-1) for _, array in arrays]
        flat = [array.astype(np.int64) if array.dtype.kind == "b" else array for array in flat]
        numbers, names, count = classes(path, key, flat, notes)
        return Column(name, CLASSES, torch.from_numpy(np.asarray(numbers, np.int64)), count, names)
    whole = first if len(arrays) == 1 else np.concatenate([array for _, array in arrays])
    if first.dtype == np.uint8 and first.ndim == 4:
        channels_last = first.shape[3] in (1, 3) and first.shape[1] not in (1, 3)
        image = whole.transpose(0, 3, 1, 2) if channels_last else whole
        return Column(name, FIELD, torch.from_numpy(np.ascontiguousarray(image)), image.shape[1], (), 256)
    if first.dtype.kind != "f" or first.dtype.itemsize not in (2, 4, 8) or first.ndim > 5 or 0 in first.shape:
        raise UserError(f"{where}; {_ACCEPTED}")
    whole = whole.astype(np.float64 if first.dtype.itemsize == 8 else np.float32, copy=False)
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
    pairs: Pairs | None = None,
) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of these names, for these images: from labels.csv, and from folders of images of the same names.

    Args:
        root: The folder, or a zip or tar file with labels.csv in it.
        names: Of the columns.
        files: The images, in the order of the rows.
        decode: Reads images as those of the data are.
        notes_of: What is reported of images that were read.
        levels: Their levels.
        classes: As `of_arrays`.
        pairs: Of an archive: the folders in it.

    Returns:
        The columns, and what was guessed or left out, a line each.

    Raises:
        UserError: For a name that is neither, and an image without a value.
    """
    found, notes, table = [], list[str](), None
    pairs = _pairs_of_folder(root, names) if pairs is None else pairs
    for name in names:
        if name in pairs.of:
            decoded = decode(_paired(pairs, name, files, notes))
            assert isinstance(decoded.images, torch.Tensor)
            found.append(Column(name, FIELD, decoded.images, decoded.images.shape[1], (), levels))
            notes += [f"{name}: {note}" for note in notes_of(decoded)]
            continue
        if table is None:
            table = _table_of(root)
        if table is None:
            raise UserError(
                f"denoiser.condition: found '{name}'; {root} has neither a folder '{name}' nor a {LABELS_FILE}"
            )
        found.append(_of_table(table, name, root, files, classes, notes))
    return tuple(found), list(dict.fromkeys(notes))


@dataclass(frozen=True)
class Pairs:
    """The images of folders that are called as columns are.

    Args:
        where: What begins the name of each folder in messages.
        start: What begins the description of each image of the data, up to its place.
        of: By column: each image by its place in the folder.
    """

    where: str
    start: str
    of: Mapping[str, Mapping[str, ImageFile]]

    def place(self, file: ImageFile) -> str:
        """Where an image of the data is."""
        return file.described.replace("\\", "/").removeprefix(self.start)


def _pairs_of_folder(root: Path, names: Sequence[str]) -> Pairs:
    found: dict[str, dict[str, ImageFile]] = {}
    for name in names:
        if (folder := root / name).is_dir():
            images = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS and path.is_file())
            found[name] = {
                path.relative_to(folder).as_posix(): ImageFile(path.name, str(path), path.read_bytes)
                for path in images
                if not path.name.startswith(".")
            }
    return Pairs(f"{root}/", f"{root.as_posix()}/", found)


def labels_of(root: Path, files: Sequence[ImageFile], classes: Callable[..., tuple], notes: list[str]) -> Column | None:
    """The column `label` of labels.csv, the classes of images that are in no folders of classes; None where none is.

    Args:
        root, files: As `of_folder`.
        classes: As `of_arrays`.
        notes: What was guessed is added to these.

    Raises:
        UserError: For a column of numbers with a point, and an image without a class.
    """
    if (root / LABEL).is_dir():
        raise UserError(
            f"denoiser.condition: found '{LABEL}', the class of the data; {root / LABEL} is a folder: call it "
            "otherwise to condition on its images"
        )
    table = _table_of(root)
    if table is None or LABEL not in next(iter(table.rows.values())):
        return None
    column = _of_table(table, LABEL, root, files, classes, notes)
    if column.kind != CLASSES:
        raise UserError(
            f"{table.where}: '{LABEL}', the class of the data, holds numbers with a point; call it otherwise"
        )
    if missing := int((column.values == column.size).sum()):
        raise UserError(
            f"{table.where}: '{LABEL}', the class of the data, is empty for {missing:,} of {len(files):,} images; fill "
            "it in, or call it otherwise"
        )
    return column


def _paired(pairs: Pairs, name: str, files: Sequence[ImageFile], notes: list[str]) -> list[ImageFile]:
    """The images of the folder `name` that have the names of those of the data, or else their names but for the ending.

    Each is of one image of the data.
    """
    where, images = f"{pairs.where}{name}", pairs.of[name]
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for place in images:
        by_stem[PurePosixPath(place).with_suffix("").as_posix()].append(place)
    chosen, places = [], dict[str, str]()
    for file in files:
        place = pairs.place(file)
        alike = by_stem.get(PurePosixPath(place).with_suffix("").as_posix(), [])
        found = [other for other in alike if other == place] or alike
        if not found:
            raise UserError(f"{where}: has no image for {place}; each image needs one of the same name")
        if len(found) > 1:
            listed = ", ".join(PurePosixPath(other).name for other in found)
            raise UserError(f"{where}: has {len(found)} images for {place}: {listed}; needs one, or {place} itself")
        if (other := places.setdefault(found[0], place)) != place:
            raise UserError(f"{where}/{found[0]}: is that of {other} and of {place}; each image needs one of its own")
        paired = images[found[0]]
        chosen.append(replace(file, described=paired.described, read=paired.read))
    if more := len(images) - len(places):
        notes.append(f"{name}: {more:,} of its {len(images):,} images have the name of no image of the data")
    return chosen


@dataclass(frozen=True)
class _Table:
    """labels.csv: what it is called, the folder of an archive that it is in, and its rows by file, then by column."""

    where: str
    folder: str
    rows: Mapping[str, Mapping[str, str]]


def _table_of(root: Path) -> _Table | None:
    """The table of a folder or an archive; None where it has none."""
    found = _in_archive(root) if root.is_file() else _in_folder(root)
    if found is None:
        return None
    where, folder, size, read = found
    try:
        if size > _MOST_BYTES:
            raise UserError(f"{where}: has {size:,} bytes; more than {_MOST_BYTES:,} are refused")
        rows = list(csv.reader(io.StringIO(read().decode("utf-8-sig")), strict=True))
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: is no readable table ({reason})") from error
    rows = [row for row in rows if row]
    head = [word.strip() for word in rows[0]] if rows else []
    if len(head) == 1 and (mark := next((mark for mark in ";\t|" if mark in head[0]), None)):
        raise UserError(f"{where}: the entries of its lines are separated by {mark!r}; accepted: commas")
    if len(rows) < 2 or len(head) < 2 or len(set(head)) < len(head):
        raise UserError(
            f"{where}: needs a first line of names, all different, file among them, and a line for each image"
        )
    at = head.index("file") if "file" in head else 0
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise UserError(f"{where}: line {number} has {len(row)} entries; the first has {len(head)} names")
        file = row[at].strip()
        if file in table:
            raise UserError(f"{where}: line {number} is the second one of {file}")
        table[file] = {word: text.strip() for i, (word, text) in enumerate(zip(head, row, strict=True)) if i != at}
    return _Table(where, folder, table)


def _in_folder(root: Path) -> _Found | None:
    path = root / LABELS_FILE
    return (str(path), "", path.stat().st_size, path.read_bytes) if path.is_file() else None


def _in_archive(path: Path) -> _Found | None:
    """labels.csv in a zip or tar file, which is read in memory, as images are.

    Raises:
        UserError: For several, and a damaged archive.
    """
    try:
        if path.suffix.lower() == ".tar":
            with tarfile.open(path, "r:") as archive:
                found = [
                    (m.name, m.size, partial(read_member, path, m.offset_data, m.size)) for m in archive if m.isreg()
                ]
        else:
            with zipfile.ZipFile(path) as zipped:
                found = [(m.filename, m.file_size, partial(_unzipped, path, m.filename)) for m in zipped.infolist()]
    except _UNREADABLE as error:
        raise UserError(f"{path}: is no readable archive ({error})") from error
    places = [(PurePosixPath(name.replace("\\", "/")), size, read) for name, size, read in found]
    tables = [one for one in places if one[0].name == LABELS_FILE and not any(map(is_hidden, one[0].parts))]
    if len(tables) > 1:
        raise UserError(f"{path}: holds {len(tables)} files called {LABELS_FILE}; needs one")
    for place, size, read in tables:
        return f"{path}: {place}", "" if str(place.parent) == "." else str(place.parent), size, read
    return None


def _unzipped(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:  # more than the archive says
        raise ValueError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
    return data


def _of_table(
    table: _Table,
    name: str,
    root: Path,
    files: Sequence[ImageFile],
    classes: Callable[..., tuple],
    notes: list[str],
) -> Column:
    """A column of labels.csv, or the vector of all whose names begin with `name.`; empty entries are not known."""
    path, known = table.where, list(next(iter(table.rows.values())))
    columns = [name] if name in known else [column for column in known if column.startswith(f"{name}.")]
    if not columns:
        raise UserError(
            f"denoiser.condition: found '{name}'; {path} has {', '.join(known)}, and {root} no folder of that "
            f"name.{did_you_mean(name, known)}"
        )
    texts, names, left = [], [_names(root, table.folder, file) for file in files], set(table.rows)
    count_of, of_places = Counter(key for keys in names for key in keys), Counter(place for place, *_ in names)
    for place, *others in names:
        key = next((key for key in (place, *others) if key in table.rows), None)
        if key is None:
            raise UserError(
                f"{path}: has no line for {place}; needs one for each image; its first is of {next(iter(table.rows))}"
            )
        if (of_places if key == place else count_of)[key] > 1:
            raise UserError(f"{path}: {key} is the name of {count_of[key]} images; {place} needs a line of its own")
        left.discard(key)
        texts.append([table.rows[key][column] for column in columns])
    if left:
        notes.append(f"{LABELS_FILE}: {len(left):,} of its {len(table.rows):,} lines are of no image, e.g. {min(left)}")
    given = [text for row in texts for text in row if text]
    if not given:
        raise UserError(f"{path}: the column {columns[0]} is empty")
    numbers = [_number(text) for text in given]
    whole = [text.lstrip("+-").isdecimal() for text in given]
    words = numbers.count(None)
    of_numbers = not all(whole) and 2 * words < len(numbers) and len(numbers) - words > sum(whole)
    if len(columns) == 1 and (words or all(whole)) and not of_numbers:
        flat = [row[0] for row in texts]
        if 0 < words < len(numbers):
            word = next(text for text, number in zip(given, numbers, strict=True) if number is None)
            notes.append(f"'{name}' holds numbers and words, e.g. {word}; all are taken for the names of classes")
        fits = not words and max(map(len, given)) < 19  # in 64 bits
        values = [int(text) for text in given] if fits else given
        found, named, count = classes(Path(path), columns[0], [np.array(values)], notes)
        places = iter(np.asarray(found, np.int64).tolist())
        return Column(name, CLASSES, torch.tensor([next(places) if text else count for text in flat]), count, named)
    rows = []
    for (place, *_), row in zip(names, texts, strict=True):
        entries = [_number(text) if text else float("nan") for text in row]
        for column, text, entry in zip(columns, row, entries, strict=True):
            if entry is None or (text and not np.isfinite(entry)):
                raise UserError(
                    f"{path}: {place} has {column} {text!r}; the others are numbers (what is not known is left empty)"
                )
        rows.append(entries if not np.isnan(np.array(entries, float)).any() else [float("nan")] * len(entries))
    return Column(name, VECTOR, torch.tensor(rows, dtype=torch.float64), len(columns))


def _place(root: Path, file: ImageFile) -> str:
    """Where an image of a folder is in it."""
    return Path(file.described).relative_to(root).as_posix()


def _names(root: Path, folder: str, file: ImageFile) -> list[str]:
    """What labels.csv may call an image: its place, in a shard with and without the shard, or its name alone."""
    archive, colon, member = file.described.partition(": ")
    if not colon or Path(archive).suffix.lower() not in (".zip", ".tar"):
        place = _place(root, file)
        return list(dict.fromkeys((place, PurePosixPath(place).name)))
    place = member.replace("\\", "/").removeprefix(f"{folder}/" if folder else "")
    shard = [] if Path(archive) == root else [f"{Path(archive).name}/{place}"]
    return list(dict.fromkeys((*shard, place, PurePosixPath(place).name)))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
