"""Pickles of somebody else, read without running code of theirs.

Every class and function of a pickle is an empty shell that keeps what it is given and does nothing. `check_copies`
reads one for the memory that it needs, `read_module` for the tensors in it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

_FREE_COPIES = 4096
_DEEPEST_KEY = 100  # tuples in each other
_OLD_PICKLES = 5  # before zip archives: a number, a version, the machine, the object, the names of its storages


class Shell:
    """Stands for an object of a class that is not loaded: it keeps its state, and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> Shell:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update({key: value for key, value in dict.items(part) if isinstance(key, str)})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        """An entry of a list, which is not kept."""

    def extend(self, values: Any) -> None:
        """Entries of a list, which are not kept."""

    def __call__(self, *arguments: Any, **options: Any) -> Shell:
        return self

    def __hash__(self) -> int:
        return id(self)


class _Copies(pickle._Unpickler):
    """Reads a pickle for what its calls would copy: every class is a shell that counts what it is given.

    A call that makes a container of another one, which the pickle names in two bytes, takes memory by its length. No
    writer makes more of them than the pickle has bytes. A tuple of tuples may be a key: its hash takes time by all that
    is in them, again where they share it.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        start, copied = file.tell(), 0
        self.passed = lambda: file.tell() - start
        self.unfolded: dict[int, tuple[int, int, Any]] = {}  # by identity, of a tuple: entries, depth, itself

        def count(values: Any) -> None:
            nonlocal copied
            for value in values if isinstance(values, tuple) else (values,):
                copied += len(value) if isinstance(value, list | tuple | dict | set | frozenset | str | bytes) else 0
            if copied > self.passed() + _FREE_COPIES:
                raise ValueError(f"its calls copy more than {copied - 1} entries, of a pickle of fewer bytes")

        def call(arguments: tuple[Any, ...]) -> None:
            count(arguments)
            for made in arguments:  # the state of an object that comes as source is one entry further down
                if isinstance(made, dict):
                    count(tuple(value for value in made.values() if isinstance(value, dict)))

        class Counted(Shell):
            def __new__(cls, *arguments: Any, **_: Any) -> Any:
                call(arguments)
                return super().__new__(cls)

            def __setstate__(self, state: Any) -> None:
                count(state)

            def __call__(self, *arguments: Any, **_: Any) -> Any:
                call(arguments)
                return self

        self.counted = Counted

    def find_class(self, module: str, name: str) -> Any:
        return self.counted

    def persistent_load(self, pid: Any) -> Any:
        return self.counted()  # the numbers are not looked at

    def unfold(self) -> None:
        """Refuse a tuple or frozen set, the last that was made, with more in it than the pickle has bytes."""
        made = self.stack[-1]
        inner = [self.unfolded[id(part)][:2] for part in made if id(part) in self.unfolded]
        entries = 1 + len(made) + sum(count for count, _ in inner)
        depth = 1 + max((deep for _, deep in inner), default=0)
        if entries > self.passed() + _FREE_COPIES or depth > _DEEPEST_KEY:
            raise ValueError(f"a tuple of {entries} entries, {depth} deep, in a pickle of fewer bytes")
        self.unfolded[id(made)] = (entries, depth, made)


def _then_unfolds(operation: int) -> None:
    load = _Copies.dispatch[operation]

    def loads(unpickler: _Copies) -> None:
        load(unpickler)
        unpickler.unfold()

    _Copies.dispatch[operation] = loads


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET):
    _then_unfolds(_code[0])


def check_pickle(file: io.BytesIO) -> None:
    """Raise ValueError for the next pickle of a file where it needs much more memory or time than it has bytes.

    Afterwards the file stands before it, as it did.
    """
    start = file.tell()
    check_memo(file)
    file.seek(start)
    _Copies(file).load()
    file.seek(start)


def check_copies(path: Path, is_zip: bool) -> None:
    """Raise ValueError for pickles that ask for much more memory than they have bytes."""
    if not is_zip:
        with path.open("rb") as file:
            for _ in range(_OLD_PICKLES):
                _Copies(file).load()
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                _Copies(io.BytesIO(archive.read(name))).load()


STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in (
        ("Float", torch.float32), ("Double", torch.float64), ("Half", torch.float16), ("BFloat16", torch.bfloat16),
        ("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8),
        ("Byte", torch.uint8), ("Bool", torch.bool),
    )
}  # fmt: skip


class Sealed:
    """A tensor that a pickle hands on: nothing can be set in it, so its storage cannot grow."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a tensor that is changed after it is made")


class _Shells(pickle.Unpickler):
    """Makes tensors and plain containers; every other class and function is a shell."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        content = archive.read(f"{root}/data.pkl")
        check_memo(content)
        super().__init__(io.BytesIO(content))
        self.archive, self.root = archive, root
        self.storages: dict[str, Sealed] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"):
            return Rebuild()
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return Shell

    def persistent_load(self, pid: Any) -> Sealed:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not re.fullmatch(r"\w+", key):
            raise ValueError("a storage of an unknown kind")
        if key not in self.storages:
            content = self.archive.read(f"{self.root}/data/{key}")
            if len(content) != numel * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(content)} bytes")
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = Sealed(torch.frombuffer(bytearray(content), dtype=dtype) if content else empty)
        return self.storages[key]


def check_memo(content: bytes | io.BytesIO) -> None:
    """The unpickler's memory is as large as the largest index that a pickle names: none is beyond its operations."""
    for count, (operation, index, _) in enumerate(pickletools.genops(content)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and (index or 0) > count:
            raise ValueError(f"operation {count} of the pickle is kept at index {index}")


class Rebuild:
    """A tensor in a storage, or a parameter of a tensor. It has no attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any = None, stride: Any = None, *_: Any) -> Sealed:
        if not isinstance(storage, Sealed):
            raise ValueError("a tensor without numbers")
        if not isinstance(size, tuple):
            return storage
        numbers = storage.tensor
        if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)) or math.prod(size) > numbers.numel():
            raise ValueError("a tensor of an impossible shape")
        return Sealed(torch.as_strided(numbers, size, stride, offset))


def read_module(path: Path) -> Any:
    """What an archive of torch.save holds, in shells.

    Raises:
        Exception: Of any kind, for a pickle from anybody.
    """
    with zipfile.ZipFile(path) as archive:
        roots = [name[: -len("/data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("no archive of torch.save")
        return _Shells(archive, roots[0]).load()
