"""Notes on results that a command replaces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..storage.records import find

_NAMED = 6


def note_replaced(path: Path, text: str, what: str, about: Callable[[Any], tuple[Sequence[str], Any]]) -> None:
    """Print one line if a JSON file that is about to be replaced holds rows that the new one does not.

    Args:
        path: The file.
        text: What it will hold.
        what: What it holds, in words.
        about: From the values of such a file to the names of its rows, and to what all of them are figures of.
    """
    now, question = about(json.loads(text))
    kept = find(path, about)
    if kept is None or (set(kept[0]) <= set(now) and kept[1] == question):
        return
    names, _ = kept
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(names[:_NAMED])
    print(f"note: {path.parent} held {what} of {listed}{more}, which is now replaced", file=sys.stderr)
