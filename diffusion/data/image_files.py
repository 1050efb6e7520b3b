"""Images in a folder, a zip file, tar shards, or a .npz array; with or without splits, with or without classes.

Splits: `train` and `test` (and `validation` or `val`), each a sub-folder or a zip file of that name, are the splits.
Anything else is one pool. Classes: the first folder of each name, where there are at least two and every image is in
one. Archives are read in memory and never unpacked.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch

from diffusion.data.decoded_cache import decode_cached
from diffusion.data.decoding import ImageFile, Progress, decode_all, resize_arrays
from diffusion.data.raw_images import RawImages
from diffusion.data.splits import SPLITS
from diffusion.data.tar_shards import list_shard
from diffusion.errors import UserError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MEMBER_BYTES = 2**28  # of one file in an archive, unpacked
_MOST_DEFLATED = 200  # times smaller: photographs are two or three, empty pages a thousand
SPLIT_NAMES = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}


# Rows of each split by the files' names and the splits that the source gives, and the rule in words.
Split = Callable[[list[str], dict[str, range]], tuple[dict[str, list[int]], str]]


def load_files(
    path: Path,
    size: int | None = None,
    progress: Progress | None = None,
    skip: bool = False,
    cache: Path | None = None,
    split: Split | None = None,
) -> RawImages:
    """Read all images under `path`.

    Args:
        path: A folder (of images, or of tar shards), a .zip or .tar file, or a .npz file with `images` (N, H, W) or
            (N, H, W, C) and perhaps `labels` (N,).
        size: Resize the shorter side to this and crop the centre.
        progress: Called with (files read, files in all) now and then.
        skip: Leave out the files that cannot be read, with a warning that names the first.
        cache: Keep decoded images in this folder, and map them from there.
        split: Put the images in the order of these splits, each in one piece, before they are decoded.

    Raises:
        UserError: Where there is nothing there, no image in it, or one that cannot be read; unsafe names in an archive.
    """
    if not path.exists():
        raise UserError(f"data.path: {path} does not exist; accepted: a folder, a .zip, .tar or .npz file.")
    if path.suffix.lower() == ".npz":
        return _load_npz(path, size)
    with ExitStack() as stack:
        try:
            parts = _split_parts(path, _list_images(path, stack))
        except PermissionError as error:
            raise UserError(f"data.path: {path} cannot be read ({error.strerror}).") from error
        files = [file for part in parts.values() for file in part]
        class_names = _class_names(files)
        counts = {name: len(part) for name, part in parts.items()}
        rule = None
        if split is not None:
            rows, rule = split([file.name for file in files], _ranges(counts))
            files = [files[row] for name in SPLITS for row in rows[name]]
            counts = {name: len(rows[name]) for name in SPLITS}
        if cache is None:
            decoded = decode_all(files, size, progress, skip)
        else:
            decoded = decode_cached(cache, files, size, progress, skip)
    if decoded.skipped:
        told = f"data.path: {len(decoded.skipped)} file(s) skipped; the first: {decoded.skipped[0]}"
        warnings.warn(told, stacklevel=2)
        kept = {name: len(set(span) & set(decoded.kept)) for name, span in _ranges(counts).items()}
        files, counts = [files[row] for row in decoded.kept], kept
    number = {name: label for label, name in enumerate(class_names)}
    labels = torch.tensor([number[_first(file.name)] for file in files]) if class_names else None
    return RawImages(
        decoded.images,
        labels,
        [file.name for file in files],
        _ranges(counts),
        str(path),
        256,
        len(class_names),
        tuple(class_names),
        rule,
        len(decoded.skipped),
    )


def _ranges(counts: dict[str, int]) -> dict[str, range]:
    """The rows of parts that lie one after another."""
    found, start = {}, 0
    for name, count in counts.items():
        found[name] = range(start, start + count)
        start += count
    return found


def _list_images(path: Path, stack: ExitStack) -> list[ImageFile]:
    """All images of a folder or a zip file, sorted by name, without the folder that wraps them all, if there is one."""
    if path.is_dir():
        files = _list_folder(path, stack)
    elif path.suffix.lower() == ".tar":
        files = _list_shards([path])
    elif zipfile.is_zipfile(path):
        files = _list_zip(path, stack)
    else:
        raise UserError(
            f"data.path: {path} is neither a folder nor a zip file; accepted: a folder, a .zip, .tar or .npz file."
        )
    if not files and path.is_dir():
        files = _list_shards(sorted(path.glob("*.tar")))
    if not files:
        zips = sorted(entry.name for entry in path.glob("*.zip")) if path.is_dir() else []
        hint = f" It holds {zips[0]}: give that as data.path." if zips else ""
        raise UserError(f"data.path: no image found in {path}; accepted endings: {' '.join(ENDINGS)}.{hint}")
    return _unwrap(sorted(files, key=lambda file: file.name))


def _unwrap(files: list[ImageFile]) -> list[ImageFile]:
    """Drop the first folder of the names as long as it is the same one for all."""
    while len({_first(file.name) for file in files}) == 1 and _first(files[0].name):
        files = [_drop_first(file) for file in files]
    return files


def _list_folder(root: Path, stack: ExitStack) -> list[ImageFile]:
    files, seen = [], set()
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not _is_hidden(name))
        if real in seen:  # a link that points up
            continue
        seen.add(real)
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower() in ENDINGS and not _is_hidden(name):
                files.append(ImageFile(file.relative_to(root).as_posix(), str(file), file.read_bytes))
    in_folders = {SPLIT_NAMES.get(_first(file.name).lower()) for file in files}
    for archive in sorted(root.glob("*.zip")):
        split = SPLIT_NAMES.get(archive.stem.lower())
        if split is not None:
            if split in in_folders:  # most likely the same images twice
                raise UserError(
                    f"data.path: {root} holds {archive.name} and a folder of that split; accepted: one of them."
                )
            members = _list_zip(archive, stack)
            if all(SPLIT_NAMES.get(_first(file.name).lower()) == split for file in members):
                members = [_drop_first(file) for file in members]  # train.zip with everything in train/
            files += [replace(file, name=f"{archive.stem}/{file.name}") for file in members]
    return files


def _list_shards(paths: list[Path]) -> list[ImageFile]:
    def is_image(name: PurePosixPath) -> bool:
        return name.suffix.lower() in ENDINGS and not any(map(_is_hidden, name.parts))

    return [file for path in paths for file in list_shard(path, is_image, SPLIT_NAMES, MEMBER_BYTES)]


def _list_zip(path: Path, stack: ExitStack) -> list[ImageFile]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: is not a readable zip file ({error}).") from error
    files = []
    for member in archive.infolist():
        described = f"{path}: {member.filename}"
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or PureWindowsPath(name).drive or ".." in name.parts:
            raise UserError(f"{described!r}: the zip file has a member with an absolute path or '..', and is refused.")
        if member.is_dir() or name.suffix.lower() not in ENDINGS or any(map(_is_hidden, name.parts)):
            continue
        if member.file_size > MEMBER_BYTES:
            raise UserError(
                f"{described}: unpacks to {member.file_size:,} bytes; more than {MEMBER_BYTES:,} are refused."
            )
        read: Callable[[], bytes] = partial(archive.read, member)
        files.append(ImageFile(str(name), described, read))
    return files


def _split_parts(path: Path, files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Group the files by the splits that their first folders name; one pool, called "train", where these name none."""
    folders = sorted({_first(file.name) for file in files})
    splits = {folder: SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES}
    # `train` or `test` alone, among other folders, is a class of that name.
    if "train" not in splits.values() or len(set(splits.values())) < 2:
        return {"train": files}
    if len(splits) != len(folders) or len(set(splits.values())) != len(splits):
        others = ", ".join(folder or "images beside the folders" for folder in folders)
        raise UserError(
            f"data.path: {path} holds {others}; accepted: train and test, perhaps validation or val, and nothing else."
        )
    groups: dict[str, list[ImageFile]] = {split: [] for split in SPLITS if split in splits.values()}
    for file in files:
        groups[splits[_first(file.name)]].append(_drop_first(file))
    return groups


def _class_names(files: list[ImageFile]) -> list[str]:
    """The classes in the order of their labels (by number where all are numbers); none unless every image is in one."""
    names = {_first(file.name) for file in files}
    if len(names) < 2 or "" in names:
        return []
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _load_npz(path: Path, size: int | None) -> RawImages:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > max(MEMBER_BYTES, _MOST_DEFLATED * member.compress_size):
                    raise UserError(
                        f"{path}: {member.filename} unpacks to {member.file_size:,} bytes from "
                        f"{member.compress_size:,}; no images do that, and it is refused."
                    )
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "images" not in arrays:
                found = ", ".join(arrays.files) or "nothing"
                raise UserError(f"{path}: has no array 'images'; found: {found}.")
            images, labels = arrays["images"], arrays.get("labels")
    except UserError:
        raise
    except Exception as error:  # zip, header and pickle errors each have their own class
        raise UserError(f"{path}: is not a readable .npz file of plain arrays ({error}).") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(
            f"{path}: 'images' is {images.dtype} {images.shape}; accepted: uint8 (N, H, W) or (N, H, W, C), C = 1 or 3."
        )
    if images.size == 0:
        raise UserError(f"{path}: no image found: 'images' has shape {images.shape}.")
    n = len(images)
    if labels is not None and (labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise UserError(f"{path}: 'labels' is {labels.dtype} {labels.shape}; accepted: integers from 0, shape ({n},).")
    tensor = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()
    return RawImages(
        images=resize_arrays(tensor, size, levels=256),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        keys=[str(row) for row in range(n)],
        parts={"train": range(n)},
        source=str(path),
        num_classes=0 if labels is None else int(labels.max()) + 1,
    )


def _first(name: str) -> str:
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def _drop_first(file: ImageFile) -> ImageFile:
    return replace(file, name=file.name.partition("/")[2])


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
