"""Errors that are the user's to mend: one clear line, no traceback, exit code 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: the message names the key or the file, what was found and what would be accepted.

    The commands print it as one line and exit with code 2; in Python it is an ordinary `ValueError`.
    """


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest of `options`, or an empty string where none is close."""
    close = get_close_matches(str(word), [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def choose(key: str, word: str, options: Iterable[str]) -> str:
    """Return `word` if it is one of `options`, else raise a `UserError` that lists them.

    Args:
        key: What the word is a value of, as the user writes it (`--sampler`, `data.name`).
        word: The value found.
        options: The values accepted.
    """
    options = list(options)
    if word not in options:
        raise UserError(f"{key}: '{word}' is not known; accepted: {', '.join(options)}.{did_you_mean(word, options)}")
    return word


@contextmanager
def reported_as(names: Mapping[str, str]) -> Iterator[None]:
    """Errors in the block that begin with a key of a configuration begin with what the user wrote in its place.

    Args:
        names: From keys to what stands for them, {"data.path": "--path"}.
    """
    try:
        yield
    except UserError as error:
        key, separator, rest = str(error).partition(":")
        if not separator or key not in names:
            raise
        raise UserError(f"{names[key]}:{rest}") from error


class SolverError(UserError):
    """A solver that cannot go on: a state that is not finite, or more evaluations than allowed."""


def check_at_least_one(**values: int) -> None:
    """Raise a `UserError` that names the first of `values` that is below one."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}: found {value}; must be at least 1")


class Default(str):
    """The default of an argument that each family of models has its own for; equal to the word it holds.

    `sample(model, n, sampler=Default("ode"))` lets a model that knows no samplers draw in its own way, while
    `sampler="ode"`, asked for by the user, is still refused there.
    """

    __slots__ = ()
