"""Numbers of any library as tensors."""

from __future__ import annotations

from contextlib import suppress
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, shown

REFUSED = (TypeError, ValueError, RuntimeError)  # what `as_tensor` raises


def as_tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor of a tensor, an array, a list or a number; of a list of tensors or arrays their stack.

    `torch.as_tensor` refuses arrays of the other byte order (FITS, HDF5), mirrored ones (`x[..., ::-1]`) and lists of
    tensors, and warns of those that may not be written to; of such it takes a copy here.

    Raises:
        TypeError, ValueError, RuntimeError: For anything else, and tensors without values or that are not dense.
    """
    if isinstance(value, list | tuple) and value and all(map(_is_array, value)):
        return torch.stack([as_tensor(one, dtype) for one in value])
    if not isinstance(value, Tensor) and _is_array(value):
        array = _array_of(value)
        if array.dtype.kind in "fiuc":
            long = array.dtype.kind == "f" and array.dtype.itemsize > 8  # C's long double
            array = array.astype("float64" if long else array.dtype.newbyteorder("="), copy=False)
        value = array if array.flags.writeable and all(stride >= 0 for stride in array.strides) else array.copy()
    found = torch.as_tensor(value, dtype=dtype)
    if found.is_meta or found.layout != torch.strided:
        raise TypeError(described(found))
    return found


def described(value: Any) -> str:
    """What was found where `as_tensor` takes nothing, in a line."""
    if isinstance(value, Tensor):
        return f"a tensor of {'no values (device meta)' if value.is_meta else f'layout {value.layout}'}"
    if _is_array(value):
        with suppress(*REFUSED):  # an array of another device, as CuPy's, says no
            array = _array_of(value)
            return f"an array of {array.dtype} {array.shape}"
    return shown(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not isinstance(value, type))


def _array_of(value: Any) -> Any:
    return value.__array__()


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, from Python, numpy or torch.

    Raises:
        UserError: For anything else, or a number below `least`.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name}: found {value!r}; must be a whole number")
    if least is not None and value < least:
        raise UserError(f"{name}: found {value}; must be at least {least}")
    return int(value)
