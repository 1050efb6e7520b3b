"""Decoded images on the disk, so that they are decoded once: levels as they lie in memory, mapped and not read.

    FOLDER/<key>.npy     the images, in the order of their splits
    FOLDER/<key>.json    which files they are of, and which could not be read

The key is the SHA-256 of every file's name and bytes, and of how it is decoded: a file that changes is another key, and
nothing has to be kept up to date. All processes of a machine share the pages of one mapped file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...storage.records import find, keep
from .alike import EIGHT_BITS, Alike
from .decoding import Decoded, ImageFile, Progress, Seen, decode_all
from .fitting import Fit, Size

_VERSION = 1


def content_key(files: Sequence[ImageFile], size: Size | None, skip: bool, how: Alike = EIGHT_BITS) -> str:
    """The SHA-256 of names, bytes, and the way of decoding."""
    more = [*([] if how.bits is None else [how.bits]), *["whole"] * how.whole, *["channels"] * how.every]
    found = hashlib.sha256(json.dumps([_VERSION, size.key if isinstance(size, Fit) else size, skip, *more]).encode())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for file, digest in zip(files, pool.map(_digest, files), strict=True):
            found.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + digest)
    return found.hexdigest()[:32]


def _digest(file: ImageFile) -> bytes:
    try:
        return hashlib.sha256(file.read()).digest()
    except Exception as error:  # of the file system, or of an archive's decompressor
        return hashlib.sha256(repr(error).encode()).digest()  # decoding names it


def decode_cached(
    folder: Path,
    files: Sequence[ImageFile],
    size: Size | None,
    progress: Progress | None,
    skip: bool,
    how: Alike = EIGHT_BITS,
) -> Decoded:
    """As `decode_all`, mapped from `folder` where it was decoded before.

    Raises:
        UserError: As `decode_all`; for a folder that cannot be written.
    """
    key = content_key(files, size, skip, how)
    array, facts = folder / f"{key}.npy", folder / f"{key}.json"
    if (found := _find(array, facts, len(files))) is not None:
        return found
    made: list[Path] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made.append(folder / f".{key}.{secrets.token_hex(4)}.tmp")
        return torch.from_numpy(
            np.lib.format.open_memmap(made[-1], "w+", torch.empty(0, dtype=dtype).numpy().dtype, shape)
        )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        decoded = decode_all(files, size, progress, skip, allocate, how)
        with open(made[-1], "rb+") as file:
            os.fsync(file.fileno())
        os.replace(made[-1], array)
        keep(facts, {"kept": decoded.kept, "skipped": decoded.skipped, **asdict(decoded.seen)})
    except OSError as error:
        raise UserError(f"data.cache: {folder} cannot be written ({error.strerror or error}).") from error
    finally:
        for path in made:
            path.unlink(missing_ok=True)
    return _find(array, facts, len(files)) or decoded


def _find(array: Path, facts: Path, count: int) -> Decoded | None:
    """What is kept under a key; None where it is not there, or not whole."""

    def mapped(kept_facts: dict[str, Any]) -> Decoded | None:
        # copy on write: pages are shared, and nothing that is done to the tensor reaches the file
        images = torch.from_numpy(np.load(array, mmap_mode="c", allow_pickle=False))
        kept = [int(row) for row in kept_facts["kept"]]
        # rows at the end are those of files that were skipped
        whole = images.dtype in (torch.uint8, torch.int32) and images.ndim == 4 and len(kept) <= len(images) == count
        skipped, deep, several = ([str(name) for name in kept_facts[key]] for key in ("skipped", "deep", "several"))
        seen = Seen([int(top) for top in kept_facts["tops"]], deep, several)
        return Decoded(images[: len(kept)], kept, skipped, seen) if whole else None

    return find(facts, mapped)
