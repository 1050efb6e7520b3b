"""Images in a folder, a zip file, tar shards, or a .npz array; with or without splits, with or without classes.

Splits: `train` and `test` (and `validation`, `val`, `dev` ...: `splits.split_of`), each a sub-folder or a zip file of
that name, are the splits. Anything else is one pool. Classes: the first folder of each name, where there are at least
two and every image is in one. Archives are read in memory, never unpacked. `notes` say what was guessed or left out.
"""

from __future__ import annotations

import ntpath
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from ...errors import UserError
from ...networks.parts import LABEL
from ...storage.paths import kind_of_file
from ..class_names import listed
from ..splits import SPLITS, split_of, splits_of
from .alike import EIGHT_BITS, Alike, EightBitsError
from .array_files import ENDINGS as ARRAYS
from .array_files import load_arrays, number_classes
from .channels import has_opacity
from .columns import Pairs, labels_of, of_folder
from .decoded_cache import decode_cached
from .decoding import Decoded, ImageFile, Progress, UnreadableError, decode_all, refuse_unused_bits
from .fitting import Size
from .passed_over import ENDINGS, PassedOver, is_hidden
from .raw_images import RawImages
from .tar_shards import list_shard

MEMBER_BYTES = 2**28  # of one file in an archive, unpacked


# Rows of each split by the files' names and the splits that the source gives, and the rule in words.
Split = Callable[[list[str], dict[str, range]], tuple[dict[str, list[int]], str]]


def load_files(
    path: Path,
    size: Size | None = None,
    progress: Progress | None = None,
    skip: bool = False,
    cache: Path | None = None,
    split: Split | None = None,
    how: Alike = EIGHT_BITS,
    columns: Sequence[str] = (),
) -> RawImages:
    """Read all images under `path`.

    Args:
        path: A folder (of images, or of tar shards), a .zip or .tar file, or arrays in a .npz or .npy file
            (`array_files`).
        size: Resize the shorter side to this and crop the centre.
        progress: Called with (files read, files in all) now and then.
        skip: Leave out the files that cannot be read, with a warning that names the first.
        cache: Keep decoded images in this folder, and map them from there.
        how: In which levels, and with which channels.
        split: Put the images in the order of these splits, each in one piece, before they are decoded.
        columns: The names of what else is read of every image (`columns`); with `label` among them, the column of that
            name is the class of images that are in no folders of classes.

    Raises:
        UserError: Where there is nothing there, no image in it, or one that cannot be read; unsafe names in an archive.
    """
    if not path.exists():
        raise UserError(f"data.path: {path} does not exist; accepted: a folder, a .zip, .tar, .npz or .npy file.")
    labelled, columns = LABEL in columns, tuple(name for name in columns if name != LABEL)
    if path.suffix.lower() in ARRAYS:
        return load_arrays(path, size, MEMBER_BYTES, how, columns)
    passed = PassedOver()
    passed.left_out = columns
    with ExitStack() as stack:
        try:
            files, pairs = _list_images(path, stack, passed), None
            if columns and path.is_file():
                files, pairs = _pairs_of_archive(path, files, columns)
                if not files:
                    raise UserError(f"data.path: {path} holds no images but those in {listed(sorted(pairs.of))}")
                files = _unwrap(files)
            parts = _split_parts(path, files)
        except PermissionError as error:
            raise UserError(f"data.path: {path} cannot be read ({error.strerror}).") from error
        files = [file for part in parts.values() for file in part]
        class_names, notes = _class_names(files)
        notes = [*passed.notes(bool(columns) or (labelled and not class_names)), *notes]
        counts = {name: len(part) for name, part in parts.items()}
        rule = None
        if split is not None:
            rows, rule = split([file.name for file in files], _ranges(counts))
            files = [files[row] for name in SPLITS for row in rows[name]]
            counts = {name: len(rows[name]) for name in SPLITS}
        if cache is None:
            decoded = decode_all(files, size, progress, skip, how=how)
        else:
            decoded = decode_cached(cache, files, size, progress, skip, how)
        notes += _of_files(decoded, how.bits)
        opacity = how.every and decoded.images.shape[1] in (2, 4) and has_opacity(files[decoded.kept[0]].read)
        if how.whole and not decoded.seen.tops:
            raise EightBitsError(f"data.levels: found 'all'; no file of {path} has more than 8 bits; leave it out")
        if decoded.skipped:
            skipped = f"data.path: {len(decoded.skipped)} file(s) skipped; the first: {decoded.skipped[0]}"
            warnings.warn(skipped, stacklevel=2)
            kept = {name: len(set(span) & set(decoded.kept)) for name, span in _ranges(counts).items()}
            files, counts = [files[row] for row in decoded.kept], kept
        read = ()
        if columns:
            alike = partial(decode_all, size=size, how=replace(how, every=False))
            notes_of = partial(_of_files, bits=how.bits)
            try:
                read, more = of_folder(path, columns, files, alike, notes_of, how.levels, number_classes, pairs)
            except UnreadableError as error:  # an image of a pair, which is not left out
                raise UserError(str(error)) from error
            notes += more
    number = {name: label for label, name in enumerate(class_names)}
    labels, num_classes = None, len(class_names)
    if class_names:
        labels = torch.tensor([number[_first(file.name)] for file in files])
    elif labelled and (column := labels_of(path, files, number_classes, notes)) is not None:
        assert isinstance(column.values, torch.Tensor)
        labels, num_classes, class_names = column.values, column.size, list(column.names)
    return RawImages(
        decoded.images,
        labels,
        [file.name for file in files],
        _ranges(counts),
        str(path),
        how.levels,
        num_classes,
        tuple(class_names),
        rule,
        len(decoded.skipped),
        tuple(dict.fromkeys(notes)),
        read,
        opacity,
    )


def _pairs_of_archive(archive: Path, files: Sequence[ImageFile], names: Sequence[str]) -> tuple[list[ImageFile], Pairs]:
    """The images of a zip or tar file that are data, and those in folders that are called as columns.

    The folders are in the one that holds all images, as that of the data is.

    Args:
        archive: The file.
        files: All its images.
        names: Of the columns.
    """
    start = f"{archive}: "
    members = [PurePosixPath(file.described.removeprefix(start).replace("\\", "/")) for file in files]
    parents = [member.parts[:-1] for member in members]
    depth = next(
        (i for i, level in enumerate(zip(*parents, strict=False)) if len(set(level)) > 1), min(map(len, parents))
    )
    if not any(folders[depth:] and folders[depth] in names for folders in parents):  # all are in a column's folder
        depth = next((i for i, folder in enumerate(parents[0][:depth]) if folder in names), depth)
    inside = "".join(f"{folder}/" for folder in parents[0][:depth])
    own, of = [], dict[str, dict[str, ImageFile]]()
    for file, member in zip(files, members, strict=True):
        first, *rest = member.parts[depth:]
        if rest and first in names:
            of.setdefault(first, {})["/".join(rest)] = file
        else:
            own.append(file)
    return own, Pairs(f"{start}{inside}", f"{start}{inside}", of)


def _of_files(decoded: Decoded, bits: int | None) -> list[str]:
    """What is reported of the files' kinds, a line each.

    Raises:
        UserError: For 16-bit files whose upper bits none uses, where it is not said how many they use.
    """
    seen, of = decoded.seen, f"of {len(decoded.kept):,} files"
    if bits is None:
        refuse_unused_bits(seen.tops)
    notes = []
    if 0 < (sixteen := len(seen.tops)) < len(decoded.kept):
        notes.append(f"{sixteen:,} {of} are grey of 16 bits; black and white of these are those of the others, of 8")
    if bits is not None and not seen.tops:
        notes.append(f"data.bits={bits} changes nothing: no file is grey of 16 bits")
    if seen.deep:
        notes.append(
            f"{len(seen.deep):,} {of} are of 16 bits, in colour or with transparency; the upper 8 of these are kept, "
            f"e.g. {seen.deep[0]}"
        )
    if seen.several:
        notes.append(
            f"{len(seen.several):,} {of} hold several pictures (an animation, pages); the first of each is taken, "
            f"e.g. {seen.several[0]}"
        )
    return notes


def _ranges(counts: dict[str, int]) -> dict[str, range]:
    """The rows of parts that lie one after another."""
    found, start = {}, 0
    for name, count in counts.items():
        found[name] = range(start, start + count)
        start += count
    return found


def _list_images(path: Path, stack: ExitStack, passed: PassedOver) -> list[ImageFile]:
    """All images of a folder or a zip file, sorted by name, without the folder that wraps them all, if there is one."""
    if path.is_dir():
        files = _list_folder(path, stack, passed)
    elif path.suffix.lower() == ".tar":
        files = _list_shards([path], passed)
    elif zipfile.is_zipfile(path):
        files = _list_zip(path, stack, passed)
    else:
        raise UserError(f"data.path: {path} {kind_of_file(path)}; accepted: a folder, a .zip, .tar, .npz or .npy file.")
    if not files and path.is_dir() and (shards := sorted(path.glob("*.tar"))):
        passed.endings.pop(".tar", None)
        files = _list_shards(shards, passed)
    if not files:
        zips = sorted(entry.name for entry in path.glob("*.zip")) if path.is_dir() else []
        hint = f" It holds {zips[0]}: give that as data.path." if zips else ""
        found = "".join(f"; {note}" for note in passed.notes()[:1])
        raise UserError(f"data.path: no image found in {path}{found}; accepted endings: {' '.join(ENDINGS)}.{hint}")
    return _unwrap(sorted(files, key=lambda file: file.name))


def _unwrap(files: list[ImageFile]) -> list[ImageFile]:
    """Drop the first folder of the names as long as it is the same one for all."""
    while len({_first(file.name) for file in files}) == 1 and _first(files[0].name):
        files = [_drop_first(file) for file in files]
    return files


def _list_folder(root: Path, stack: ExitStack, passed: PassedOver) -> list[ImageFile]:
    files, seen = [], set()
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        left_out = passed.left_out if Path(folder) == root else ()
        inner = sorted(name for name in subfolders if not is_hidden(name) and name not in left_out)
        subfolders[:] = [] if real in seen else inner
        if real in seen:  # a link that points up, or to a folder that was read
            passed.links.append(Path(folder).relative_to(root).as_posix())
            continue
        seen.add(real)
        inside = Path(folder).relative_to(root).as_posix() + "/" if folder != str(root) else ""
        for name in names:
            if passed.is_image(name):
                file = os.path.join(folder, name)
                files.append(ImageFile(inside + name, file, partial(_read, file)))
    in_folders = {split_of(folder) for folder in {_first(file.name) for file in files}}
    for archive in sorted(root.glob("*.zip")):
        split = split_of(archive.stem)
        if split is not None:
            passed.endings[".zip"] -= 1
            if split in in_folders:  # most likely the same images twice
                raise UserError(
                    f"data.path: {root} holds {archive.name} and a folder of that split; accepted: one of them."
                )
            members = _list_zip(archive, stack, passed)
            if all(split_of(_first(file.name)) == split for file in members):
                members = [_drop_first(file) for file in members]  # train.zip with everything in train/
            files += [replace(file, name=f"{archive.stem}/{file.name}") for file in members]
    return files


def _list_shards(paths: list[Path], passed: PassedOver) -> list[ImageFile]:
    return [file for path in paths for file in list_shard(path, passed.is_image, MEMBER_BYTES)]


def _list_zip(path: Path, stack: ExitStack, passed: PassedOver) -> list[ImageFile]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: is not a readable zip file ({error}).") from error
    files = []
    for member in archive.infolist():
        described = f"{path}: {member.filename}"
        path_inside = member.filename.replace("\\", "/")
        parts = [part for part in path_inside.split("/") if part not in ("", ".")]  # a third of pathlib's time
        if path_inside.startswith("/") or ntpath.splitdrive(path_inside)[0] or ".." in parts:
            raise UserError(f"{described!r}: the zip file has a member with an absolute path or '..', and is refused.")
        name = "/".join(parts)
        if member.is_dir() or not passed.is_image(name):
            continue
        if member.file_size > MEMBER_BYTES:
            raise UserError(
                f"{described}: unpacks to {member.file_size:,} bytes; more than {MEMBER_BYTES:,} are refused."
            )
        read: Callable[[], bytes] = partial(archive.read, member)
        files.append(ImageFile(name, described, read))
    return files


def _split_parts(path: Path, files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Group the files by the splits that their first folders name; one pool, called "train", where these name none."""
    if _are_splits({_first(_drop_first(file).name) for file in files}) and not _are_splits(map(_folder, files)):
        files = [_swap_first_two(file) for file in files]  # cat/train/1.png, cat/test/2.png, dog/train/3.png ...
    folders = sorted({_folder(file) for file in files})
    splits = splits_of(folders)
    # `train` or `test` alone, among other folders, is a class of that name.
    if len(set(splits.values())) < 2 or ("train" not in splits.values() and len(splits) < len(folders)):
        return {"train": files}
    if len(splits) != len(folders) or len(set(splits.values())) != len(splits) or "train" not in splits.values():
        others = ", ".join(folder or "images beside the folders" for folder in folders)
        raise UserError(
            f"data.path: {path} holds {others}; accepted: train and test, perhaps validation (or val, valid, dev, "
            "eval), each of them once, and nothing else."
        )
    groups: dict[str, list[ImageFile]] = {split: [] for split in SPLITS if split in splits.values()}
    for file in files:
        groups[splits[_folder(file)]].append(_drop_first(file))
    for folder, split in splits.items():  # train/train/..., as archives are unpacked
        while all(_folder(file) == folder for file in groups[split]):
            groups[split] = [_drop_first(file) for file in groups[split]]
    return groups


def _are_splits(folders: Iterable[str]) -> bool:
    """Whether these are the names of splits, all of them, training and another among them."""
    names = set(folders)
    splits = splits_of(names)
    return len(splits) == len(names) and "train" in splits.values() and len(set(splits.values())) > 1


def _class_names(files: list[ImageFile]) -> tuple[list[str], list[str]]:
    """The classes in the order of their labels (by number where all are numbers); none unless every image is in one.

    Returns:
        The names, and what is reported of them.
    """
    names = {_first(file.name) for file in files}
    if "" in names and len(names) > 1:
        stray = [file.name for file in files if not _first(file.name)]
        folders = listed(sorted(names - {""}))
        return [], [
            f"no labels: {len(stray):,} of {len(files):,} images are in none of the folders {folders}, e.g. {stray[0]}"
        ]
    if len(names) < 2:
        return [], []
    numbers = all(name.isascii() and name.isdigit() for name in names)
    classes = sorted(names, key=lambda name: (int(name) if numbers else 0, name))
    notes = [f"the folder '{name}' is taken for a class, as no other split is beside it" for name in classes
             if split_of(name) is not None]  # fmt: skip
    return classes, notes


def _first(name: str) -> str:
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def _folder(file: ImageFile) -> str:
    return _first(file.name)


def _swap_first_two(file: ImageFile) -> ImageFile:
    first, second, rest = file.name.split("/", 2)
    return replace(file, name=f"{second}/{first}/{rest}")


def _drop_first(file: ImageFile) -> ImageFile:
    return ImageFile(file.name.partition("/")[2], file.described, file.read)  # a third of the time of `replace`


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _raise(error: OSError) -> None:
    raise error
