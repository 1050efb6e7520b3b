"""Full disks, reported in one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CONTINUE = "Free some space; the same command resumes the run."


@contextmanager
def reported(way_out: str) -> Iterator[None]:
    """Within the block, report a write that fails because the disk is full.

    Args:
        way_out: What the user can do about it.

    Raises:
        UserError: For such a write; other system errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is None:
            raise
        raise UserError(f"{error.filename}: cannot be written ({error.strerror}). {way_out}") from error


def reason(error: BaseException) -> str:
    """Why a write failed: PyTorch's writer reports a file position where the system reported a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
