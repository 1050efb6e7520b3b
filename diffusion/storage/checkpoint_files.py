"""Reading training checkpoints: checked before they are loaded, and without executing code from them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, in_one_line
from .paths import named_path


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint, after testing the CRC of every record.

    Args:
        path: A file written by `torch.save`.
        map_location: Where the tensors go, as for `torch.load`.

    Raises:
        UserError: The file is missing, cut short, corrupt, or holds objects that would run code.
    """
    path = named_path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint.")
    damaged = f"{path}: the checkpoint is cut short or corrupt ({{}}); use another one from {path.parent}."
    # A flipped bit in the archive's own headers can surface as almost any exception of the parsers.
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:
        raise UserError(damaged.format(in_one_line(error))) from error
    if bad is not None:
        raise UserError(damaged.format(f"wrong checksum of {bad}"))
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, it holds Python objects other than tensors and plain values, which could run code."
        ) from error
    except Exception as error:
        raise UserError(damaged.format(in_one_line(error))) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}; a checkpoint is a dictionary.")
    return checkpoint


def step_of(path: str | Path) -> int:
    """The step of a checkpoint, without reading its tensors; 0 if it cannot be read."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # said where it is loaded: a flipped bit can surface as almost any exception
        return 0


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is in nested mappings and lists, with its place, `a.0.b`, after that of the whole."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield name, value
        return
    for key, item in items:
        yield from leaves(item, f"{name}.{key}" if name else str(key))
