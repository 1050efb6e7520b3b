"""Sections of a configuration: pydantic models that read text by the type of the key, and refuse in one line.

    class EMAConfig(Section):
        section = "ema"
        half_life: float = option(500_000.0, "half-life of the average, in images", gt=0)

An option says all there is to know of it where it is declared: type, range, default, help, and which kinds (of network,
of schedule, ...) and families take it. A section that exists is valid, made from Python or from text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from ..errors import UserError, did_you_mean
from .strict_yaml import readings, show

# A file or a folder. The home folder of another machine's user stays what it is, as that user's model does.
Place = Annotated[str, AfterValidator(os.path.expanduser)]
Count = Annotated[int, Field(ge=1)]

SectionT = TypeVar("SectionT", bound="Section")
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_ONE = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text", "null": "null"}
_MANY = {"integer": "integers", "number": "numbers", "string": "words"}


class Among:
    """What `Literal` is for words, for the names of a table: `Annotated[str, Among(SAMPLERS)]`."""

    def __init__(self, names: Iterable[str]):
        self._names = tuple(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler(Literal[self._names])


def imported(place: str) -> Any:
    """What a table of names has for a name: `samplers.ddim:DDIM` is `DDIM` of `diffusion/samplers/ddim.py`.

    A table is read without torch, so it holds places. They are in rooms below, which call this.
    """
    module, _, name = place.partition(":")
    return getattr(import_module(f"diffusion.{module}"), name)


def option(default: Any, text: str, families: tuple[str, ...] = (), **limits: int | float) -> Any:
    """Declare an option.

    Args:
        default: The default; of an option that only some kinds take, {kind: default}: in the other kinds it is None.
        text: What `--help` says of it.
        families: The families that take it, where not all of those of its section do.
        limits: The range of a number: `ge`, `gt`, `le`, `lt`.
    """
    kinds = default if isinstance(default, dict) else {}
    extra: dict[str, Any] = {"kinds": kinds, "families": families}
    return Field(None if kinds else default, description=text, json_schema_extra=extra, **limits)  # type: ignore[arg-type]


def declared(field: FieldInfo, what: str) -> Any:
    """What `option` was given as `kinds` or `families`; None of a field that is not an option but a section."""
    return field.json_schema_extra.get(what) if isinstance(field.json_schema_extra, dict) else None


class Section(BaseModel):
    """A group of options.

    Attributes:
        section: The name before the dot in the section's keys.
        families: The families that take the section; empty: all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    section: ClassVar[str]
    families: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._refusal(error, values) from None

    def replace(self: SectionT, **changes: Any) -> SectionT:
        """This section with other values, which are checked."""
        return type(self)(**(self.__dict__ | changes))

    @classmethod
    def key(cls, name: str) -> str:
        """The key of an option as the user writes it, e.g. `trainer.steps`."""
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    @cache
    def variants(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """For each option that chooses a kind: the options that its kinds take, with their defaults."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, field in cls.model_fields.items():
            for kind, default in (declared(field, "kinds") or {}).items():
                chooser = next(other for other in cls.model_fields if kind in cls.words(other))
                found.setdefault(chooser, {}).setdefault(kind, {})[name] = default
        return found

    @classmethod
    def accepts(cls, name: str) -> dict[str, Any]:
        """The JSON schema of an option."""
        return _schema(cls)["properties"][name]

    @classmethod
    def words(cls, name: str) -> list[str]:
        """The words that an option accepts."""
        return choices(cls.accepts(name))

    def options(self) -> dict[str, Any]:
        """The options of the chosen kinds by name, as keyword arguments of what they configure."""
        names = [name for s, kinds in self.variants().items() for name in kinds.get(getattr(self, s), {})]
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Raise a `UserError` where the options contradict one another; nothing to check by default."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _read(cls, value: Any, convert: Any) -> Any:
        *others, last = readings(value)
        for reading in others:
            try:
                return convert(reading)
            except ValidationError:
                continue
        return convert(last)

    @model_validator(mode="after")
    def _complete(self: SectionT) -> SectionT:
        for name, value in self.__dict__.items():
            numbers = value if isinstance(value, list | tuple) else (value,)
            large = [n for n in numbers if isinstance(n, int) and n >= 2**63]
            if large and name != "seed":  # which is of 64 bits, without a sign
                raise UserError(f"{self.key(name)}: found {show(large[0])}; must be below 2^63")
        for chooser, kinds in self.variants().items():
            chosen = getattr(self, chooser)
            taken = kinds.get(chosen, {})
            for name in {name: None for options in kinds.values() for name in options}:
                value = getattr(self, name)
                if name in taken and value is None:
                    object.__setattr__(self, name, taken[name])  # frozen
                elif name not in taken and value is not None:
                    takes = f"; it takes {', '.join(taken)}" if taken else ""
                    raise UserError(f"{self.key(name)}: found {show(value)}; '{chosen}' does not take it{takes}")
        self.check()
        return self

    @classmethod
    def _refusal(cls, error: ValidationError, values: dict[str, Any]) -> UserError:
        """The first of pydantic's errors as one line: the key, what was found, what is accepted."""
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            return cause
        name = str(first["loc"][0])
        if name not in cls.model_fields:
            return UserError(f"unknown key '{cls.key(name)}'.{did_you_mean(name, cls.model_fields)}")
        found, schema = values[name], cls.accepts(name)
        hint = did_you_mean(found, choices(schema)) if isinstance(found, str) else ""
        return UserError(f"{cls.key(name)}: found {show(found)}; must be {describe(schema)}{'.' if hint else ''}{hint}")


@cache
def _schema(cls: type[Section]) -> dict[str, Any]:
    return cls.model_json_schema()


def choices(schema: dict[str, Any]) -> list[str]:
    """The words that an option accepts, by its JSON schema; empty if it is not one of words."""
    members = [word for member in schema.get("anyOf", ()) for word in choices(member)]
    return members + schema.get("enum", [schema["const"]] if "const" in schema else [])


def describe(schema: dict[str, Any]) -> str:
    """Say in words what an option accepts, by its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(describe(member) for member in schema["anyOf"])
    if words := choices(schema):
        return f"{'one of ' if len(words) > 1 else ''}{', '.join(words)}"
    kind = schema.get("type")
    if kind == "array":
        item, *more = schema.get("prefixItems") or [schema["items"]]
        return f"a list of {f'{1 + len(more)} ' if more else ''}{_MANY[item['type']]}{_limits(item)}"
    return f"{_ONE.get(str(kind), 'a section')}{_limits(schema)}"


def _limits(schema: dict[str, Any]) -> str:
    limits = [f"{words} {schema[name]:g}" for name, words in _LIMITS.items() if name in schema]
    return f" {' and '.join(limits)}" if limits else ""
