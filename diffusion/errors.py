"""Errors in what the user gave: one clear line, no traceback, exit code 2."""

from __future__ import annotations

import os
import reprlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module, metadata
from typing import Any

BY_UV = "UV_RUN_RECURSION_DEPTH"  # in the environment of what `uv run` starts
_LONGEST_SHOWN = 60  # characters


class UserError(ValueError):
    """Bad input: the message names the key or the file, what was found and what would be accepted.

    The commands print it as one line and exit with code 2; in Python it is an ordinary `ValueError`.
    """


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest of `options`, or an empty string where none is close."""
    close = get_close_matches(str(word), [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


class _Shown(reprlib.Repr):
    """Of plain containers the first entries of two levels; of what else a file may hold the name of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 2, 20, 20, 10
        self.maxstring = self.maxother = _LONGEST_SHOWN

    def repr1(self, value: Any, level: int) -> str:
        if isinstance(value, int) and value.bit_length() > 1024:  # whose digits Python may refuse to write
            return f"a whole number of {value.bit_length()} bits"
        plain = type(value) in (bool, int, float, str, list, tuple, dict) or value is None
        return super().repr1(value, level) if plain else f"a {type(value).__name__}"


def shown(value: Any) -> str:
    """The beginning of a value for a message, in little time: a list of a file may hold another one in 2^60 places."""
    return _Shown().repr1(value, 2)[:_LONGEST_SHOWN]


def choose(key: str, word: str, options: Iterable[str]) -> str:
    """Return `word` if it is one of `options`, else raise a `UserError` that lists them.

    Args:
        key: The option or key that the word was given for, as the user writes it (`--sampler`, `data.name`).
        word: The value found.
        options: The values accepted.
    """
    options = list(options)
    if word not in options:
        raise UserError(f"{key}: '{word}' is not known; accepted: {', '.join(options)}.{did_you_mean(word, options)}")
    return word


def in_one_line(error: BaseException, most: int = 200) -> str:
    """The class of an error of a library and the first line of what it says, for a message of ours."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:most]


def library(name: str, extra: str, what: str) -> Any:
    """A library that is installed with an extra of this package.

    Args:
        name: The library.
        extra: The extra.
        what: What needs it, as the beginning of a sentence that goes on with its name.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{what} {name}, which is not installed; {way_to_install(extra)}") from error


def way_to_install(extra: str) -> str:
    """How to install what an extra of this package names, given how the program was started.

    The libraries are named and the package is not: PyPI's `diffusion` is another one.
    """
    if BY_UV in os.environ:
        return f"begin with: uv run --extra {extra}"
    try:
        requirements = metadata.requires("diffusion") or ()
    except metadata.PackageNotFoundError:  # a checkout on the path
        requirements = ()
    needed = [text.partition(";")[0].strip() for text in requirements if f"extra == '{extra}'" in text]
    return shlex.join(["pip", "install", *(needed or ["-e", f".[{extra}]"])])


@contextmanager
def reported_as(names: Mapping[str, str]) -> Iterator[None]:
    """Within the block, errors about a configuration key are reported under the name that the user knows it by.

    Args:
        names: The replacement for each key, e.g. {"data.path": "--path"}.
    """
    try:
        yield
    except UserError as error:
        key, separator, rest = str(error).partition(":")
        if not separator or key not in names:
            raise
        raise UserError(f"{names[key]}:{rest}") from error


class SolverError(UserError):
    """A solver that cannot continue: a non-finite state, or more evaluations than allowed."""


def check_at_least_one(**values: int) -> None:
    """Raise a `UserError` that names the first of `values` that is below one."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}: found {value}; must be at least 1")


class Default(str):
    """A default that each family of models may replace with its own; equal to the word it holds.

    `sample(model, n, sampler=Default("ode"))` lets a model without samplers draw in its own way, while
    an explicit `sampler="ode"` is still refused there.
    """

    __slots__ = ()
