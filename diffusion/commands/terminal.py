"""What commands print for people: texts and tables that fit the terminal, places of files, the next command, notes.

No line is wider than the terminal, no word is broken and no row of a table wraps, unless a single word is too long;
the last line is the next command as one types it, with what it needs of this one's options.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ..processes import typed
from ..storage.records import find
from .options import RUNS
from .table import wrapped

_NAMED = 6
_GOES_ON = " \\"  # the end of a line that a shell reads on from


def console() -> Console:
    """The console for reports: as wide as the terminal or as COLUMNS says; in a file with neither, of 80 columns."""
    return Console(soft_wrap=True)  # a word that is too long stays whole


def say(console: Console, text: Text | str, style: str = "") -> None:
    """Print a text in lines as wide as the console, cut between words; a word that is longer stays whole."""
    for part in wrapped(text if isinstance(text, Text) else Text(text, style), console.width):
        console.print(part, soft_wrap=True)


def print_places(console: Console, places: Mapping[str, Path | str]) -> None:
    """Print the places of files by what they are, a line each, as they are copied; below their names if too long."""
    width = max(map(len, places), default=0) + 1
    for name, place in places.items():
        line = f"{f'{name}:':{width}} {place}"
        fits = cell_len(line) <= console.width
        console.print(Text(line if fits else f"{name}:\n{place}"), soft_wrap=True)


def print_next(console: Console, command: str, *words: str, data: str | None = None, runs: str = RUNS) -> None:
    """Print the command that comes next, as it is typed; at the end of each. A long one goes on in further lines.

    Args:
        console: Where.
        command: Its name.
        words: Its arguments.
        data, runs: What this one was given as `--data` and `--runs`, where the next one needs it, too.
    """
    places = [*(() if data is None else ("--data", data)), *(() if runs == RUNS else ("--runs", runs))]
    lines = [f"next: {typed(command)}"]
    for word in map(shlex.quote, (*words, *places)):
        longer = f"{lines[-1]} {word}"
        if cell_len(longer) <= console.width - len(_GOES_ON):
            lines[-1] = longer
        else:
            lines.append(f"  {word}")
    console.print(Text(f"{_GOES_ON}\n".join(lines)), soft_wrap=True)


def split_words(split: str) -> tuple[str, ...]:
    """The arguments that name a split to the next command: none for the test images, its default."""
    return () if split == "test" else ("--split", split)


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
