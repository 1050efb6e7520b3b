"""The fields of a JSON file that somebody else's program wrote, each checked as it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import UserError, did_you_mean, shown
from ...storage.records import reading

_LARGEST = 2**26  # bytes; a table of 10^6 numbers has fewer


class Fields:
    """A JSON object.

    Args:
        path: The file.
        values: Its content, where it is read already.

    Raises:
        UserError: For a file that is missing, or no JSON object; at a field, for a value that is none of it, with the
            file and the key.
    """

    def __init__(self, path: Path, values: dict[str, Any] | None = None):
        self.path = path
        if values is not None:
            self.values = values
            return
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        with reading(f"{path}: no JSON object"):
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"larger than {_LARGEST} bytes")
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"a {type(values).__name__}")
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; the default where the key is missing."""
        return self.values.get(key, default)

    def refuse(self, key: str, needs: str) -> UserError:
        """The error for the value of a key."""
        found = shown(self.values[key]) if key in self.values else "nothing"
        return UserError(f"{self.path}: {key}: found {found}; needs {needs}")

    def whole(self, key: str, default: int | None, low: int = 1, high: int = 2**31) -> int:
        """A whole number."""
        value = self.get(key, default)
        if not _is_whole(value) or not low <= value <= high:
            raise self.refuse(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None, low: float = -math.inf, high: float = math.inf) -> float:
        """A real number, the ends included."""
        value = self.get(key, default)
        if not _is_real(value) or not low <= value <= high:
            raise self.refuse(key, "a number" if low == -math.inf else f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def word(self, key: str, default: str | None, words: Iterable[str]) -> str:
        """One of some words."""
        value, words = self.get(key, default), list(words)
        if not isinstance(value, str) or value not in words:
            near = did_you_mean(value, words) if isinstance(value, str) else ""
            raise self.refuse(key, f"one of {', '.join(words)}.{near}")
        return value

    def wholes(self, key: str, default: Any = None, low: int = 1, high: int = 2**31) -> list[int]:
        """A list of whole numbers, of one or more."""
        value = self.get(key, default)
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(_is_whole(n) and low <= n <= high for n in value)
        ):
            raise self.refuse(key, f"a list of whole numbers from {low} to {high}")
        return list(value)

    def sides(self, key: str) -> list[int]:
        """Height and width, of one number for both or of two."""
        value = self.get(key)
        sides = [value, value] if _is_whole(value) else value
        if not isinstance(sides, list) or len(sides) != 2 or not all(_is_whole(n) and 0 < n <= 2**16 for n in sides):
            raise self.refuse(key, "a whole number, or height and width")
        return sides

    def numbers(self, key: str) -> list[float]:
        """A list of real numbers."""
        value = self.get(key)
        if not isinstance(value, list) or not all(map(_is_real, value)):
            raise self.refuse(key, "a list of numbers")
        return [float(number) for number in value]

    def words(self, key: str, default: Any = None) -> list[str]:
        """A list of words, of one or more."""
        value = self.get(key, default)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(word, str) for word in value):
            raise self.refuse(key, "a list of words")
        return list(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300 and math.isfinite(value)
