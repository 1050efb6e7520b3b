"""Pickles of whole modules with their source code, as NVlabs writes them (EDM), read without running any of it.

Such a file is a plain pickle: a dictionary of objects, each the source of its class, the arguments that made it, and
its state; a tensor in it is a storage in `torch.save`'s old format. Six names are understood, and in a storage the
types of numbers; every other is an empty shell.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, in_one_line
from .foreign_weights import plainly_stored, tensors_of
from .shells import STORAGES, Rebuild, Sealed, Shell, check_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save's old format


class Pickled:
    """An object of a file: what made it, and its tensors.

    Attributes:
        class_name: The name of its class.
        arguments: The keyword arguments that it was made with.
        tensors: Parameters and buffers by name.
    """

    def __init__(self, path: Path, shell: Shell):
        own = vars(shell)
        self.class_name, self.arguments = own.get("class_name"), own.get("_init_kwargs")
        self.tensors: dict[str, Tensor] = plainly_stored(path, dict(tensors_of(shell)))


def read_pickled(path: Path, name: str) -> Pickled:
    """The object that the dictionary in a pickle has under a name.

    Raises:
        UserError: For a file that is damaged, holds no such object, or anything but plain values and tensors in it.
    """
    refused = f"{path}: not a pickle of a network with its source, or cut short or corrupt ({{}})."
    try:
        content = io.BytesIO(path.read_bytes())
        check_pickle(content)
        found = _Modules(content).load()
        entry = dict.get(found, name) if isinstance(found, dict) else None
        if not isinstance(entry, Shell) or not isinstance(vars(entry).get("class_name"), str):
            raise ValueError(f"it holds no '{name}'")
        return Pickled(path, entry)
    except UserError:
        raise
    except Exception as error:  # of a pickle from anybody
        raise UserError(refused.format(in_one_line(error))) from error


class _Fields(dict):
    """A dictionary that begins empty: to copy a long one again and again takes memory without end."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a dictionary with attributes")


class _Reconstructed:
    """An object of a class that comes as source: a shell of its state, with the name of the class."""

    __slots__ = ()

    def __call__(self, meta: Any) -> Shell:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise ValueError("an object without state")
        shell = Shell()
        shell.__setstate__(meta["state"])
        shell.__dict__["class_name"] = meta.get("class_name")
        return shell


class _StorageOfBytes:
    """A storage that `torch.save` wrote in its old format."""

    __slots__ = ()

    def __call__(self, content: Any) -> Any:
        file = io.BytesIO(content if isinstance(content, bytes) else b"")
        if (_head(file), _head(file)) != (_MAGIC, _PROTOCOL):
            raise ValueError("a storage in an unknown format")
        _head(file)  # of the machine that wrote it
        dtype, numel = _head(file)
        _head(file)  # the key of the only one
        size = int.from_bytes(file.read(8), "little")
        numbers = bytearray(file.read())
        if size != numel or len(numbers) != numel * dtype.itemsize:
            raise ValueError(f"a storage of {size} numbers in {len(numbers)} bytes")
        tensor = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
        return Sealed(tensor)


class _Modules(pickle.Unpickler):
    """Makes tensors, plain containers and shells of objects; every other class and function is a shell."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): _Fields,
            ("dnnlib.util", "EasyDict"): _Fields,
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Reconstructed(),
            ("torch.storage", "_load_from_bytes"): _StorageOfBytes(),
            ("torch._utils", "_rebuild_tensor_v2"): Rebuild(),
            ("torch._utils", "_rebuild_parameter"): Rebuild(),
        }
        return known.get((module, name), Shell)

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("a reference to something outside of the file")


def _head(file: io.BytesIO) -> Any:
    """The next of the pickles that a storage begins with."""
    check_pickle(file)
    return _Storage(file).load()


class _Storage(pickle.Unpickler):
    """Reads the heads of a storage: plain values, and the type of its numbers."""

    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in STORAGES:
            raise ValueError(f"{module}.{name} in a storage")
        return STORAGES[name]

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, int]:
        kind, dtype, _, _, numel, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(numel) is not int:
            raise ValueError("a storage of an unknown kind")
        return dtype, numel
