"""Atomic writes: whenever a crash happens, a reader finds the old content or the new, never a part of it.

The recipe is the POSIX one. The bytes go to a temporary file *in the folder of the target* (a rename is atomic only
within one file system, which `$TMPDIR` often is not), are flushed to the disk with `fsync`, and `os.replace` puts them
under the target's name in one step; `fsync` of the folder then makes the name itself durable. A process killed in
between leaves a hidden `.name.<token>.tmp` behind, which `sweep` removes.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".tmp"


@contextmanager
def writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for writing; the file appears, or replaces the former one, only when the block ends without an error.

    On an exception (a full disk, an interrupt) the temporary file is removed and the former content stays. Missing
    folders are created.

    Args:
        path: The file to write.

    Yields:
        A binary file to write to; it may be read back and is seekable.

    Raises:
        OSError: If it cannot be written; the error names `path`.
    """
    path = Path(path)
    # Not `tempfile.mkstemp`: that makes files that only their owner may read, which a shared run folder must not hold.
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # there may be no folder to look in
            temporary.unlink(missing_ok=True)
        # A failed write reports no name, and a failed opening that of a file which the user has never heard of.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def check_writable(path: str | os.PathLike[str], may_be_folder: bool = False) -> None:
    """Check that `path` could be written, with a temporary file next to it; no folder is created.

    Args:
        path: The file.
        may_be_folder: Whether it may also be an existing folder.

    Raises:
        OSError: If it could not be written.
    """
    path = Path(os.path.abspath(path))
    if not path.name or (path.is_dir() and not may_be_folder):  # the root has no name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    probe = folder / _temporary(path).name  # as long a name as it takes
    with open(probe, "xb"):
        probe.unlink()


@contextmanager
def naming(path: str | os.PathLike[str], other_than: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, a write into the folder `other_than`, or one that does not say where, fails with `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not (error.filename is None or str(error.filename).startswith(str(other_than))):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically and durably (see `writer`)."""
    with writer(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically and durably (see `writer`)."""
    write_bytes(path, text.encode("utf-8"))


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give `source` the second name `target`, atomically, as a hard link where the file system allows it.

    Hard links are safe here because files written by this module are replaced and never changed in place.
    """
    source, target = Path(source), Path(target)
    temporary = _temporary(target)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        write_bytes(target, source.read_bytes())
        return
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # rename(2) does nothing where both names already are links to one file
    sync_folder(target.parent)


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that killed processes left in `folder`, and return their paths.

    Only for the process that owns the run folder, at its start, while nobody else is writing.
    """
    stale = sorted(Path(folder).glob(f".*.????????{_SUFFIX}"))
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush the names in `folder` to the disk, so that a rename survives a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
