"""What a model that the user's own Python makes is: a digest of its numbers and its code.

Tensors and numbers count by their values, functions and classes by their code and by what they refer to, those of
installed packages by their name and the package's version. An object that can hide state, such as one of a C extension,
cannot be distinguished from another: `identity` then says so.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Tensor, nn

from ..storage import runs

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice, PurePath)
_ATOMS += (torch.dtype, torch.device, torch.layout, torch.memory_format)
# What every class has, and what says nothing of what it does.
_OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__"}
_OF_CLASSES |= {"__module__", "__abstractmethods__", "__annotate_func__", "__annotations_cache__", "_abc_impl"}
# A module's own, such as its hooks; its parameters, buffers and modules are looked at.
_OF_MODULES = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
_SLOTS = (GetSetDescriptorType, MemberDescriptorType)
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib"))
_OURS = __name__.partition(".")[0]


class _Plain:
    """An object of no state but its `__dict__` is laid out as one of these."""


def _layout(kind: type) -> tuple[int, int, int, int]:
    return kind.__basicsize__, kind.__itemsize__, kind.__dictoffset__, kind.__weakrefoffset__


def identity(*things: Any) -> tuple[str, bool]:
    """The SHA-256 of what these are, and whether all of it is known."""
    walk = _Walk()
    for thing in things:
        walk.add(thing)
    return walk.digest.hexdigest(), walk.known


class _Walk:
    def __init__(self):
        self.digest, self.known = hashlib.sha256(), True
        self._seen: dict[int, tuple[int, Any]] = {}  # the objects are held, so that no id is used again

    def say(self, *words: Any) -> None:
        text = "\0".join(map(str, words)).encode()
        self.digest.update(f"{len(text)}:".encode() + text)

    def all(self, word: str, *things: Any) -> None:
        self.say(word, len(things))
        for thing in things:
            self.add(thing)

    def add(self, thing: Any) -> None:
        """Whatever it is; what was seen before is known by its number, so that circles end."""
        if isinstance(thing, Enum):
            return self.say("enum", type(thing).__qualname__, thing.name)
        if isinstance(thing, _ATOMS):
            return self.say(type(thing).__name__, repr(thing))
        if type(thing) in (tuple, torch.Size):
            return self.all("tuple", *thing)
        if isinstance(thing, CodeType):
            return self._code(thing)
        if id(thing) in self._seen:
            return self.say("again", self._seen[id(thing)][0])
        self._seen[id(thing)] = (len(self._seen), thing)
        return self._object(thing)

    def _object(self, thing: Any) -> None:
        for kinds, look in _LOOKS:
            if isinstance(thing, kinds):
                return look(self, thing)
        if is_dataclass(thing):
            return self.all("data", type(thing), *(getattr(thing, field.name) for field in fields(thing)))
        if hasattr(type(thing), "__array__"):  # of the thing itself, `__getattr__` may do anything
            try:
                return self._tensor(torch.as_tensor(thing))
            except (TypeError, ValueError, RuntimeError):
                return self._unknown(thing)
        if _layout(type(thing)) == _layout(_Plain):
            return self._attributes(thing)
        return self._unknown(thing)

    def _unknown(self, thing: Any) -> None:
        self.known = False
        self.say("unknown", type(thing).__qualname__)

    def _attributes(self, thing: Any, without: frozenset[str] | set[str] = frozenset()) -> None:
        kind = type(thing)
        names = [
            name
            for name in vars(thing)
            if name not in without and not isinstance(inspect.getattr_static(kind, name, None), cached_property)
        ]
        self.all("object", kind)
        for name in sorted(names):
            self.all(name, vars(thing)[name])

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            self._unknown(tensor)
            return
        self.say("tensor", tensor.dtype, tuple(tensor.shape))
        values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
        self.digest.update(values.view(torch.uint8).numpy().tobytes())

    def _module(self, module: nn.Module) -> None:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(inner, nn.Module):  # compiled
            return self.add(inner)
        if isinstance(module, torch.jit.ScriptModule):
            return self._unknown(module)
        return self._attributes(module, _OF_MODULES)

    def _mapping(self, mapping: Mapping[Any, Any]) -> None:
        self.all("mapping", *(part for item in mapping.items() for part in item))

    def _set(self, values: set[Any] | frozenset[Any]) -> None:
        found = [identity(value) for value in values]
        self.known &= all(known for _, known in found)
        self.say("set", *sorted(digest for digest, _ in found))

    def _function(self, function: FunctionType) -> None:
        self.say("function", function.__qualname__)
        self.all("defaults", function.__defaults__, function.__kwdefaults__)
        closed = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        for name, cell in closed.items():
            try:
                self.all(name, cell.cell_contents)
            except ValueError:  # empty
                self.say(name)
        if _of_library(self, function.__module__):
            return
        self.add(function.__code__)
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                self.all(name, function.__globals__[name])

    def _code(self, code: CodeType) -> None:
        self.say("code", code.co_code.hex(), code.co_names, code.co_varnames, code.co_argcount, code.co_flags)
        self.all("constants", *code.co_consts)

    def _class(self, kind: type) -> None:
        self.say("class", kind.__qualname__)
        if _of_library(self, kind.__module__):
            return
        self.all("bases", *kind.__bases__)
        for name, value in vars(kind).items():
            if name not in _OF_CLASSES and not isinstance(value, _SLOTS):
                self.all(name, value)

    def _python_module(self, module: ModuleType) -> None:
        if _of_library(self, module.__name__):
            return
        path = Path(getattr(module, "__file__", None) or "")
        if path.is_file():
            self.say("file", runs.file_digest(path))
        else:
            self._unknown(module)

    def _builtin(self, function: Any) -> None:
        self.say("builtin", function.__name__)
        self.add(getattr(function, "__self__", None))


def _of_library(walk: _Walk, name: str | None) -> bool:
    """Whether this Python module is known by its name and its version, which are then said."""
    first = (name or "").partition(".")[0]
    package = sys.modules.get(first)
    path = getattr(package, "__file__", None)
    installed = first == _OURS or (first in sys.stdlib_module_names and first != "__main__")
    installed |= path is not None and any(Path(path).resolve().is_relative_to(place) for place in _LIBRARIES)
    walk.say(name if installed else "", getattr(package, "__version__", "") if installed else "")
    return installed


def _names(code: CodeType) -> Iterator[str]:
    """The names that code looks up, and those within."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


# How each kind of object is looked at; the first that fits.
_LOOKS: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    (Tensor, _Walk._tensor),
    (nn.Module, _Walk._module),
    (tuple, lambda walk, found: walk.all("tuple", type(found), *found)),
    (list, lambda walk, found: walk.all("list", *found)),
    (Mapping, _Walk._mapping),
    ((set, frozenset), _Walk._set),
    (partial, lambda walk, found: walk.all("partial", found.func, found.args, found.keywords)),
    (FunctionType, _Walk._function),
    (MethodType, lambda walk, found: walk.all("method", found.__func__, found.__self__)),
    (BuiltinFunctionType, _Walk._builtin),
    ((MethodDescriptorType, WrapperDescriptorType), lambda walk, found: walk.all(found.__name__, found.__objclass__)),
    (type, _Walk._class),
    (ModuleType, _Walk._python_module),
    ((staticmethod, classmethod), lambda walk, found: walk.all("method", found.__func__)),
    (property, lambda walk, found: walk.all("property", found.fget)),
    (cached_property, lambda walk, found: walk.all("property", found.func)),
)
