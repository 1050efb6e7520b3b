"""Classes by number and by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError, did_you_mean

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
    """The classes with their numbers, in a line: `0 cat, 1 dog`; a name that has its number (`0 - zero`) as it is."""
    return listed([name if name.split()[:1] == [str(i)] else f"{i} {name}" for i, name in enumerate(names)])


def check_number(number: int, names: Sequence[str], key: str = "label") -> int:
    """The number itself, where there is a class of it; `key` is what it was given for, for messages.

    Raises:
        UserError: Where there is none; the line names those that there are.
    """
    if not 0 <= number < len(names):
        raise UserError(f"{key}: found {number}; the model has the classes {_known(names)}")
    return number


def number_of(text: str, names: Sequence[str], key: str = "label") -> int:
    """The number of the class that a text means: its name, its number, or `#` and its number.

    Args:
        text: What was given.
        names: Of the classes, in the order of their numbers.
        key: What it was given for, for messages.

    Raises:
        UserError: For a text that is none of these, or the name of one class and the number of another.
    """
    digits = text.removeprefix("#").removeprefix("-")
    number = int(text.removeprefix("#")) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None
    if text in names:
        named = names.index(text)
        if number is not None and number != named and 0 <= number < len(names):
            raise UserError(
                f"{key}: '{text}' is the name of class {named}, and the number of class '{names[number]}'; "
                f"accepted: #{named} or #{number}, by number"
            )
        return named
    if number is not None:
        return check_number(number, names, key)
    raise UserError(f"{key}: found '{text}'; the model has the classes {_known(names)}.{did_you_mean(text, names)}")


def text_of(number: int, names: Sequence[str]) -> str:
    """The text of which `number_of` makes this number: the name, or `#` and the number where another class has it."""
    try:
        return names[number] if number_of(names[number], names) == number else f"#{number}"
    except UserError:
        return f"#{number}"


def _known(names: Sequence[str]) -> str:
    plain = list(names) == [str(number) for number in range(len(names))]
    return f"0 to {len(names) - 1}" if plain else numbered(names)
