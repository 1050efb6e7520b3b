"""Images in tar files, as WebDataset packs them: `shard-000042.tar` with `key.jpg`, and perhaps its class in `key.cls`.

A shard is read by place, member by member, and not as a stream: an image is found by (shard, member) at any time, so
that the order of training stays a function of the seed and the step. Nothing is unpacked; links and devices are no
images. A shard called `train-...`, `test-...`, `val-...` or the like (`splits.split_of`) belongs to that split.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from ...errors import UserError
from ..splits import split_of
from .decoding import ImageFile

_CLASS = ".cls"


def read_member(path: Path, offset: int, size: int) -> bytes:
    """The bytes of a member, by its place in the tar file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def list_shard(path: Path, is_image: Callable[[str], bool], most_bytes: int) -> list[ImageFile]:
    """The images of one shard, named `split/class/shard:member`, without what does not apply.

    Args:
        path: The tar file, not compressed.
        is_image: Whether a member's name is that of an image.
        most_bytes: The size above which a member is refused.

    Raises:
        UserError: For a file that is no such tar file; a member with an absolute path, `..` or too many bytes; a class
            that is no whole number.
    """
    images, classes = [], {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                described = f"{path}: {member.name}"
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError(
                        f"{described!r}: the tar file has a member with an absolute path or '..', and is refused."
                    )
                if not member.isreg():
                    continue
                if name.suffix == _CLASS:
                    text = (
                        read_member(path, member.offset_data, min(member.size, 20)).decode("ascii", "replace").strip()
                    )
                    if not (text.isascii() and text.isdigit()):
                        raise UserError(f"{described}: found {text!r}; a class is a whole number from 0.")
                    classes[str(name.with_suffix(""))] = str(int(text))
                elif is_image(str(name)):
                    if member.size > most_bytes:
                        raise UserError(f"{described}: {member.size:,} bytes; more than {most_bytes:,} are refused.")
                    read = partial(read_member, path, member.offset_data, member.size)
                    images.append((name, described, read))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is not a readable tar file without compression ({error}).") from error
    first_word = re.split(r"[^A-Za-z]", path.stem, maxsplit=1)[0]
    split = [first_word] if split_of(first_word) else []
    files = []
    for name, described, read in images:
        label = classes.get(str(name.with_suffix("")))
        folders = [label] if label is not None else list(name.parts[:-1])
        files.append(ImageFile("/".join([*split, *folders, f"{path.stem}:{name.name}"]), described, read))
    return files
