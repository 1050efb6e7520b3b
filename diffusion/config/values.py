"""What a configuration holds: sections of options, each with a type, a range, a default and a word of help.

A section is a frozen dataclass whose fields are made by `option`. Building one, from Python or from text, converts and
checks every value, so that a section that exists is valid. Nothing here imports torch.
"""

from __future__ import annotations

import math
import os
import re
import types
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import UserError, did_you_mean

NULL = re.compile(r"|~|null|Null|NULL")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30}(_[0-9]{1,30}){0,9})")
FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Plain(str):
    """Text without quotes, as YAML and the command line give it: its type is that of the key that it is given to.

    Hence `1e-4` is a number, `name: 2024` is text and `wandb: off` is the word, all of which YAML 1.1 reads otherwise.
    """


def option(default: Any, text: str, path: bool = False, **bounds: int | float) -> Any:
    """Make a dataclass field.

    Args:
        default: The default.
        text: What `--help` says of the option.
        path: Whether it names a file or a folder, where `~` is the home folder.
        bounds: The range of a number, or of each number of a list: `at_least`, `above`, `at_most`, `below`.
    """
    return field(default=default, metadata={"help": text, "path": path, "bounds": bounds})


@cache
def types_of(cls: type) -> dict[str, Any]:
    """The types of a section's fields by name."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def choices(kind: Any) -> list[str]:
    """The words that a type accepts, empty if it is not one of words."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if _is_union(kind):
        return [word for member in get_args(kind) for word in choices(member)]
    return []


def describe(kind: Any, bounds: dict[str, int | float] | None = None) -> str:
    """Say in words what a type and a range accept."""
    limits = f" {describe_bounds(bounds)}" if bounds else ""
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return f"{'one of ' if len(words) > 1 else ''}{', '.join(words)}"
    if _is_union(kind):
        return " or ".join(describe(member, bounds) for member in get_args(kind))
    if get_origin(kind) is tuple:
        item, *others = get_args(kind)
        count = "" if others[-1] is ... else f"{1 + len(others)} "
        return f"a list of {count}{ {int: 'integers', float: 'numbers', str: 'words'}[item] }{limits}"
    words = {int: f"an integer{limits}", float: f"a number{limits}", bool: "true or false", str: "text"}
    return words.get(kind, "null")


def show(value: Any) -> str:
    """Write a value that was found, in one line."""
    if isinstance(value, Plain) and (NULL.fullmatch(value) or BOOL.fullmatch(value) or FLOAT.fullmatch(value)):
        text = value or "null"
    elif isinstance(value, str):
        text = f"'{value}'" if value.isprintable() else repr(str(value))
    elif isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(show, value))}]"
    else:
        text = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def convert(value: Any, kind: Any) -> Any:
    """Make `value` of the type `kind`, without loss.

    Args:
        value: A Python value, or text read from YAML (`Plain` where it had no quotes; a list of such).
        kind: A type made of None, bool, int, float, str, Literal words, tuples and unions.

    Raises:
        TypeError: Where `value` is not of that type.
    """
    plain = isinstance(value, Plain)
    if _is_union(kind):
        # null first: where it is allowed, the word null is not text
        for member in sorted(get_args(kind), key=lambda member: member is not types.NoneType):
            try:
                return convert(value, member)
            except TypeError:
                continue
    elif get_origin(kind) is tuple:
        members = get_args(kind)
        if isinstance(value, (list, tuple)) and (members[-1] is ... or len(members) == len(value)):
            return tuple(convert(item, members[0]) for item in value)
    elif get_origin(kind) is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return str(value)
    elif kind is types.NoneType:
        if value is None or (plain and NULL.fullmatch(value)):
            return None
    elif kind is str:
        if isinstance(value, str) and not (plain and NULL.fullmatch(value)):
            return str(value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if plain and BOOL.fullmatch(value):
            return value.lower() == "true"
    elif kind is int:
        if type(value) is int or (plain and INT.fullmatch(value)):
            return int(value)
    elif (type(value) in (int, float) or (plain and FLOAT.fullmatch(value))) and math.isfinite(float(value)):
        return float(value)
    raise TypeError(f"{value!r} is not {kind}")


@dataclass(frozen=True)
class Section:
    """A group of options; every concrete section is a frozen dataclass whose fields are made by `option`.

    Attributes:
        section: The name before the dot in the section's keys.
        variants: For a field that chooses a kind: the options that each kind takes, with its defaults. An option of
            another kind is refused, one that is not given gets the default of the chosen kind; in the other kinds it is
            None.
    """

    section: ClassVar[str]
    variants: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}

    def __post_init__(self) -> None:
        for f in (f for f in fields(self) if f.metadata):
            value = self.convert_option(f.name, getattr(self, f.name))
            if f.metadata["path"] and value is not None:
                value = os.path.expanduser(value)  # of another machine's user it stays what it is, as its model does
            object.__setattr__(self, f.name, value)
            self._check_bounds(self.key(f.name), value, f.metadata["bounds"])
        for selector, kinds in self.variants.items():
            self._settle(getattr(self, selector), kinds)
        self.check()

    @classmethod
    def key(cls, name: str) -> str:
        """The key of a field as the user writes it, e.g. `trainer.steps`."""
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    def convert_option(cls, name: str, value: Any) -> Any:
        """Make a value that of an option, or raise a `UserError`."""
        kind, option = types_of(cls)[name], cls.__dataclass_fields__[name]
        if not option.metadata:  # not an option but a section, which is made by itself
            return value
        try:
            return convert(value, kind)
        except TypeError:
            hint = did_you_mean(value, choices(kind)) if isinstance(value, str) else ""
            accepted = f"{describe(kind, option.metadata['bounds'])}{'.' if hint else ''}{hint}"
            raise UserError(f"{cls.key(name)}: found {show(value)}; must be {accepted}") from None

    def check(self) -> None:
        """Raise a `UserError` where the options contradict one another; nothing to check by default."""

    def options(self) -> dict[str, Any]:
        """The options of the chosen kinds by name, as keyword arguments of what they configure."""
        names = [name for s, kinds in self.variants.items() for name in kinds.get(getattr(self, s), {})]
        return {name: getattr(self, name) for name in names}

    def _check_bounds(self, key: str, value: Any, bounds: dict[str, int | float]) -> None:
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if bounds and not all(within(number, bounds) for number in numbers):
            raise UserError(f"{key}: found {show(value)}; must be {describe_bounds(bounds)}")

    def _settle(self, chosen: str, kinds: dict[str, dict[str, Any]]) -> None:
        taken = kinds.get(chosen, {})
        for name in {name: None for options in kinds.values() for name in options}:
            value = getattr(self, name)
            if name in taken and value is None:
                object.__setattr__(self, name, taken[name])
            elif name not in taken and value is not None:
                takes = f"; it takes {', '.join(taken)}" if taken else ""
                raise UserError(f"{self.key(name)}: found {show(value)}; '{chosen}' does not take it{takes}")


SectionT = TypeVar("SectionT", bound=Section)


def read_section(cls: type[SectionT], values: dict[str, Any]) -> SectionT:
    """Make a section from values as read from text, by the names of the options."""
    return cls(**{name: cls.convert_option(name, value) for name, value in values.items()})


def within(number: int | float, bounds: dict[str, int | float]) -> bool:
    """Whether a number lies in a range."""
    return (
        number >= bounds.get("at_least", -math.inf)
        and number > bounds.get("above", -math.inf)
        and number <= bounds.get("at_most", math.inf)
        and number < bounds.get("below", math.inf)
    )


def describe_bounds(bounds: dict[str, int | float]) -> str:
    """Say in words what a range accepts."""
    return " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in bounds.items())


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)
