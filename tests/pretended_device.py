"""A device that is not there: what a GPU would be given to do is done on the CPU, and counted.

Tensors on it have the device `meta`, whose backward passes run where a CPU's do, and hold their values. As on a GPU a
tensor with a dimension meets none of the CPU, the host waits where it reads a value, and copies are seen.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta")
_ATEN = torch.ops.aten
# What a GPU cannot give without the host waiting: a value, or a shape that depends on values.
_WAITS = {
    _ATEN._local_scalar_dense.default, _ATEN.is_nonzero.default, _ATEN.equal.default, _ATEN.nonzero.default,
    _ATEN.masked_select.default, _ATEN._unique2.default, _ATEN.repeat_interleave.Tensor,
}  # fmt: skip
_NO_WORK = ("detach", "alias", "view", "_unsafe_view", "expand", "slice", "select", "unsqueeze", "squeeze", "t",
            "transpose", "permute", "split", "unbind", "as_strided", "unfold", "lift_fresh", "empty", "empty_like",
            "new_empty", "split_with_sizes", "diagonal", "empty_strided", "new_empty_strided")  # fmt: skip


class Pretended(torch.Tensor):
    """A tensor on the device: its values are in `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def tolist(self):
        return self.to("cpu").tolist()

    def new_tensor(self, data, **options):
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def __repr__(self, *, tensor_contents=None):
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, Counter(), [])


class Device(TorchDispatchMode):
    """Counts what goes on while it is entered.

    Args:
        float64: Whether the device has it; without it no such tensor can be there, as on `mps`.

    Attributes:
        counts: `waits`, `to_device`, `to_host` and `operations`.
        places: Where the host waited or copied, as texts.
    """

    def __init__(self, float64=True):
        super().__init__()
        self.float64 = float64
        self.counts: Counter[str] = Counter()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = _run(func, args, kwargs or {}, self.counts, self.places)
        if not self.float64:
            for value in _tensors(found):
                if isinstance(value, Pretended) and value.dtype == torch.float64:
                    raise TypeError(f"{func}: the pretended device has no float64")
        return found

    def __enter__(self):
        self._tensor = torch.tensor
        torch.tensor = self._made  # what it does below no mode sees
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = self._tensor
        return super().__exit__(*error)

    def _made(self, data, *, device=None, **options):
        made = self._tensor(data, **options)
        return made if device is None else made.to(device)

    def clear(self):
        self.counts.clear()
        self.places.clear()


def _tensors(value):
    """Those among the arguments or the results of an operation, which holds lists and tuples alone."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for item in value for one in _tensors(item)] if isinstance(value, list | tuple) else []


def _each(function, value):
    """The same arguments or results with the function of each that is in no list."""
    return type(value)(_each(function, item) for item in value) if isinstance(value, list | tuple) else function(value)


def _bare(value):
    return value.held if isinstance(value, Pretended) else value


def _pretended(value):
    return Pretended(value) if isinstance(value, torch.Tensor) else value


@cache
def _aliasing(func):
    """What the result shares: nothing (`none`), all of the first argument, which it is (`first`), or else (`other`)."""
    returns = [of.alias_info for of in func._schema.returns]
    if all(of is None for of in returns):
        return "none"
    first = func._schema.arguments[0].alias_info
    is_first = len(returns) == 1 and first is not None and first.is_write and first.before_set == returns[0].before_set
    return "first" if is_first and torch.Tag.inplace_view not in func.tags else "other"


def _places():
    """The innermost three lines of the program and of Lightning."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 3:
        name = frame.f_code.co_filename
        if "/diffusion/" in name or "/lightning/" in name:
            found.append(f"{name[-40:]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


def _run(func, args, kwargs, counts, places):
    tensors = _tensors((args, list(kwargs.values())))
    here = [value for value in tensors if isinstance(value, Pretended)]
    asked = kwargs.get("device")
    to_device = torch.device(asked).type == DEVICE.type if asked is not None else bool(here)
    if not here and not to_device:
        return func(*args, **kwargs)
    others = [value for value in tensors if not isinstance(value, Pretended) and value.ndim and value.numel()]
    name = func.overloadpacket.__name__

    def note(kind):
        counts[kind] += 1
        places.append(f"{kind} {name}: {_places()}")

    if name in ("_to_copy", "copy_", "_copy_from"):
        source = args[1] if name == "copy_" else args[0]
        target = isinstance(args[0], Pretended) if name == "copy_" else to_device
        if isinstance(source, Pretended) and not target:
            note("to_host")
        elif not isinstance(source, Pretended) and target:
            note("to_device")
    elif name == "where" and len(here) < len(tensors):
        note("to_device")  # other operations take numbers of the CPU as their arguments
    elif func in _WAITS or (name in ("index", "index_put_") and any(_is_mask(value) for value in args[1])):
        note("waits")
    elif here and others:
        if name in ("index", "index_put_"):
            note("to_device")
        else:
            raise RuntimeError(f"{name}: a tensor of the CPU meets one of the device; {[t.shape for t in tensors]}")
    if name not in _NO_WORK:
        counts["operations"] += 1

    more = {key: _each(_bare, value) for key, value in kwargs.items()}
    if "device" in more:
        more["device"] = torch.device("cpu")
    more.pop("pin_memory", None)
    found = func(*_each(_bare, args), **more)
    if not to_device or (func in _WAITS and not isinstance(found, torch.Tensor)):
        return found
    aliasing = _aliasing(func)
    if here and asked is None and aliasing == "first":
        return args[0]
    made = _each(_pretended, found)
    if not here or asked is not None or aliasing == "none":
        return made
    return return_and_correct_aliasing(func, args, kwargs, made)


def _is_mask(value):
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)
