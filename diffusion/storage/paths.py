"""Paths as people write them: read here wherever a configuration, an option or a call names a file or a folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError


def named_path(path: str | os.PathLike[str], key: str = "path") -> Path:
    """As `expanded`, as a path."""
    return Path(expanded(path, key))


def expanded(path: str | os.PathLike[str], key: str = "path") -> str:
    """The path that is meant: `~` and `~user` at its beginning are home folders; else it stays to the letter.

    A shell does so in a word of its own alone, and not in `--out=~/x`, in YAML, in a notebook or in a scheduler's
    script; taken as it is, `~` would become a folder of that name.

    Args:
        path: What was named.
        key: What it is a value of, for messages: a key, an option or an argument.

    Raises:
        UserError: For no path at all, one with a zero byte, and a user that there is not.
    """
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise UserError(f"{key}: found {text!r}; must be a path")
    found = os.path.expanduser(text)
    if text.startswith("~") and found == text:
        raise UserError(f"{key}: found '{text}'; there is no user '{Path(text).parts[0][1:]}'")
    return found


def file_name(text: str) -> str:
    """A name of something as a part of a file's name: letters, digits and . _ - of it, at most 80."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip("-.")[:80] or "unnamed"
