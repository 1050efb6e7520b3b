"""One process per run or draw: a lock that the kernel releases when the process ends, however it ends.

On disk, a run whose process was killed looks like one that is being trained: both are unfinished. The lock tells them
apart, so that the same command started twice does not train one run twice or write one file twice.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError

try:
    import fcntl
except ImportError:  # no POSIX locks on this system: nothing is locked
    fcntl = None

LOCK = ".lock"
IN_TRAINING = "{folder}: is being trained by {holder}; wait for it or stop it, or start a new run (--resume never)"
_HELD = (errno.EACCES, errno.EAGAIN)


def holder(run: Path) -> str | None:
    """Who holds the lock of a folder, from the lock file; None if nobody does, or if the file system has no locks."""
    path = run / LOCK
    if fcntl is None or not path.is_file():
        return None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _who(path) if error.errno in _HELD else None
    finally:
        os.close(descriptor)
    return None


@contextmanager
def held(run: Path, message: str = IN_TRAINING) -> Iterator[None]:
    """Hold the lock of a folder within the block; child processes do not inherit it.

    Args:
        run: The folder.
        message: The error message, with placeholders `{folder}` and `{holder}`.

    Raises:
        UserError: Another process holds it.
    """
    if fcntl is None:
        yield
        return
    path = run / LOCK
    descriptor = _take(path, message)
    with suppress(OSError):  # a full disk: the lock holds without a word of whose it is
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, message: str) -> int:
    assert fcntl is not None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _HELD:
                raise UserError(message.format(folder=path.parent, holder=_who(path))) from None
            return os.open(path, os.O_RDWR)  # a disk without locks
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder has removed it meanwhile


def _who(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):  # its holder is done with it now
        return "another process"
