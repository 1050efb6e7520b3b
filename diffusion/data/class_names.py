"""Classes by number and by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion.errors import UserError, did_you_mean

_SHOWN = 8


def listed(names: Sequence[str], most: int = _SHOWN) -> str:
    """Names in a line, the middle ones of many left out."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 2])}, ..., {names[-1]}"


def names_of(provenance: Mapping[str, Any], num_classes: int) -> list[str]:
    """The names of the classes in the order of their numbers, as a data set's provenance keeps them.

    Classes without a name are called by their number.
    """
    found = provenance.get("class_names")
    try:
        names = json.loads(found) if isinstance(found, str) else str(provenance.get("classes", "")).split(", ")
    except (ValueError, RecursionError):
        names = []
    if isinstance(names, list) and len(names) == num_classes:
        return [str(name) for name in names]
    return [str(number) for number in range(num_classes)]


def numbered(names: Sequence[str]) -> str:
    """The classes with their numbers, in a line: `0 cat, 1 dog`."""
    return listed([str(i) if name == str(i) else f"{i} {name}" for i, name in enumerate(names)])


def number_of(text: str, names: Sequence[str]) -> int:
    """The number of the class that a text means: its name, its number, or `#` and its number.

    Raises:
        UserError: For a text that is none of these, or the name of one class and the number of another.
    """
    digits = text.removeprefix("#")
    whole = digits.isascii() and digits.isdigit() and len(digits) < 19
    by_number = int(digits) if whole and int(digits) < len(names) else None
    by_name = names.index(text) if text in names else None
    if by_name is not None and by_number not in (None, by_name):
        raise UserError(
            f"label: '{text}' is the name of class {by_name}, and the number of class '{names[by_number]}'; accepted: "
            f"#{by_name} or #{by_number}, by number"
        )
    found = by_number if by_name is None else by_name
    if found is None:
        raise UserError(
            f"label: found '{text}'; the model has the classes {numbered(names)}.{did_you_mean(text, names)}"
        )
    return found
