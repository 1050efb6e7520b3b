"""Paths as users write them, in configurations, options and calls."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError


def named_path(path: str | os.PathLike[str], key: str = "path") -> Path:
    """`expanded`, as a `Path`."""
    return Path(expanded(path, key))


def expanded(path: str | os.PathLike[str], key: str = "path") -> str:
    """Expand `~` and `~user` at the beginning of a path; everything else stays as it is.

    A shell expands `~` only at the beginning of a word, not in `--out=~/x`, in YAML, in a notebook or in a scheduler's
    script, where a folder called `~` would be created.

    Args:
        path: The path as given.
        key: The key, option or argument it was given for, for messages.

    Raises:
        UserError: For an empty path, one with a zero byte, and an unknown user.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{key}: found a {type(path).__name__}; must be a path")
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise UserError(f"{key}: found {text!r}; must be a path")
    found = os.path.expanduser(text)
    if text.startswith("~") and found == text:
        raise UserError(f"{key}: found '{text}'; there is no user '{Path(text).parts[0][1:]}'")
    return found


def file_name(text: str) -> str:
    """A name made safe for use in a file name: its letters, digits and . _ -, at most 80 characters."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip("-.")[:80] or "unnamed"


# What is no archive or array that can be read, by its first bytes.
_KINDS = {
    b"PK": "is a zip file that is cut short or damaged",
    b"\x1f\x8b": "is compressed (gzip): gunzip makes a .tar of a .tar.gz",
    b"BZh": "is compressed (bzip2): bunzip2 makes a .tar of a .tar.bz2",
    b"\xfd7zXZ": "is compressed (xz): unxz makes a .tar of a .tar.xz",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unzstd makes a .tar of a .tar.zst",
    b"7z\xbc\xaf": "is a 7z archive: unpack it",
    b"Rar!": "is a rar archive: unpack it",
    b"\x89PNG": "is a single image: give the folder that holds all",
    b"\xff\xd8\xff": "is a single image: give the folder that holds all",
}


def kind_of_file(path: Path) -> str:
    """What is known of a file from which no images can be read, from its first bytes and its name: `is ...`."""
    with path.open("rb") as file:
        start = file.read(8)
    named = "is no zip file, or is damaged" if path.suffix.lower() == ".zip" else "is no archive, and no array"
    return next((kind for first, kind in _KINDS.items() if start.startswith(first)), named)
