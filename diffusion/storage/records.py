"""Results stored as JSON under the digest of the question they answer, so that none is computed twice.

A question is plain values. What is read back may have been damaged, or come from anybody: a line cut short, a missing
key, a number of a megabyte, lists nested a thousand deep. `find` takes such a file for none, and `reading` makes one
`UserError` of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError, in_one_line
from . import atomic

Answer = TypeVar("Answer")
# What parsing a damaged or foreign file raises. UserError and what json and Unicode raise are ValueErrors,
# RecursionError and what torch raises are RuntimeErrors, OverflowError is an ArithmeticError.
DAMAGED = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def digest(question: Any, length: int = 12) -> str:
    """The first digits of the SHA-256 of a question (plain values), whatever the order of its keys."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:length]


def keep(path: str | Path, answer: Any) -> None:
    """Write plain values as JSON, atomically (`atomic.writer`)."""
    atomic.write_text(path, json.dumps(answer, indent=1))


def find(path: str | Path, make: Callable[[Any], Answer]) -> Answer | None:
    """`make` applied to the values of a JSON file; None if it is missing, damaged, or not accepted by `make`."""
    with suppress(*DAMAGED):
        return make(json.loads(Path(path).read_text(encoding="utf-8")))
    return None


@contextmanager
def reading(damaged: str) -> Iterator[None]:
    """Within the block, data that may be damaged or come from elsewhere is read.

    Args:
        damaged: The beginning of the message, naming the file; the reason is appended.

    Raises:
        UserError: For whatever the reader raises, in one line.
    """
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"{damaged} ({in_one_line(error)})") from error
