"""Parsers of command lines and their values, without torch."""

from __future__ import annotations

import argparse
import math
import os
from contextlib import AbstractContextManager
from typing import NoReturn

from ..errors import UserError, did_you_mean, reported_as
from ..storage.paths import expanded

TUNING_SECONDS = 300.0
RUNS = "runs"  # where runs are looked up by name


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; what is not understood is a `UserError`, in one line.

    Args:
        command: A file, or a command of `python -m diffusion`.
        description: What it does.
    """

    def __init__(self, command: str, description: str | None = None):
        prog = command if command.endswith(".py") else f"python -m diffusion {command}"
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def add_runs(self) -> None:
        """The option that says where runs are looked up by name."""
        self.add_argument(
            "--runs", type=path, metavar="DIR", default=RUNS, help=f"the folder of runs (default: {RUNS})"
        )

    def add_device(self) -> None:
        """The option that says where to compute."""
        self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, ..., mps (default: auto)")

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            first = next((word for word in unknown if word.startswith("-")), unknown[0])
            raise UserError(f"unknown option '{first}'.{did_you_mean(first.partition('=')[0], flags)}")
        raise UserError(message.replace("argument ", "", 1))


def flag(name: str) -> str:
    """The option of the command line that sets `name`."""
    return f"--{name.replace('_', '-')}"


def in_flags(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Within the block, errors about an option name it as it is typed."""
    fields = {key: f"--option {key}" for key, _ in getattr(options, "option", None) or ()}
    return reported_as({**fields, **{name: flag(name) for name in vars(options)}})


def path(text: str) -> str:
    """A path or a name, with `~` expanded."""
    if text.startswith(("data.root=", "data.path=")):
        key, _, value = text.partition("=")
        raise argparse.ArgumentTypeError(f"found '{text}'; {key} is a key of train.py; here it is --data {value}")
    try:
        return expanded(text, "path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("path: ")) from None


def condition(text: str) -> str:
    """NAME=VALUE or VALUE, with the `~` of a path expanded; a word that begins with one stays."""
    name, equals, value = ("", "", text) if text.startswith("~") else text.partition("=")
    return f"{name}{equals}{os.path.expanduser(value)}"


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found '{text}'; must be a whole number") from None


def number(text: str) -> float:
    """A finite number."""
    value = bound(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found '{text}'; must be a finite number")
    return value


def bound(text: str) -> float:
    """A number, or inf."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"found '{text}'; must be a number")
    return value


def eta(text: str) -> float | str:
    """A number, or a number and where it holds, as `1@-3:5`."""
    return text if "@" in text else number(text)


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}; must be at least 1")
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"found {value}; must be below 2^63")
    return value


def tolerance(text: str) -> float:
    """A number between 0 and 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; must be between 0 and 1, e.g. 1e-4")
    return value


def seed(text: str) -> int:
    """A whole number, 0 or more."""
    value = whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {value}; must be at least 0")
    return value


def size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, or one whole number for both."""
    sides = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"found '{text}'; must be pixels, 16, or height x width, 12x16")
    return sides[0], sides[-1]


def add_fitted_start(parser: Parser) -> None:
    """Declare `--fitted-start`."""
    parser.add_argument(
        "--fitted-start",
        choices=("diagonal", "full"),
        help="begin in a Gaussian that is fitted to the training images and not in noise, for a path that does not end "
        "in noise: its covariance (full: of more images than dimensions)",
    )


def add_tuning_seconds(parser: argparse.ArgumentParser) -> None:
    """The option that limits `--grid auto` and `--sampler fitted`."""
    parser.add_argument("--tuning-seconds", type=seconds, default=TUNING_SECONDS, metavar="S",
        help="time limit for tuning a grid (auto) or fitting a sampler (fitted); the best so far is then used "
        f"(default: {TUNING_SECONDS:g})")  # fmt: skip


def seconds(text: str) -> float:
    """A number above 0, or inf."""
    value = bound(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"found '{text}'; must be above 0, or inf")
    return value


def setting(text: str) -> tuple[str, int | float | str]:
    """KEY=VALUE, the value a whole number, a number, or else a word."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"found '{text}'; must be KEY=VALUE, e.g. predictor=3")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value, value)
