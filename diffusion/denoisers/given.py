"""Arguments as users pass them: arrays, lists and numbers of other libraries, converted, or refused in one line.

Public calls also leave inference mode: gradients are taken inside (guidance, likelihoods), and tensors created in
inference mode cannot take part in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from ..errors import UserError, shown
from ..networks.parts import Part
from ..numerics.arrays import REFUSED, as_tensor, described, whole_number
from .condition import LABEL, Condition, condition_for, of_parts

P = ParamSpec("P")
R = TypeVar("R")
_BEYOND = 9.0  # a computed time may be this far beyond an end of the path
MOST_LEVELS = 2**16  # of a pixel
MOST_ROWS = 2**48  # samples with distinct noise (`random`)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "single": torch.float32, "double": torch.float64}


def real_number(name: str, value: Any) -> float:
    """A finite number, from Python, numpy or torch.

    Raises:
        UserError: For anything else.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise UserError(f"{name}: found {value!r}; must be a finite number")
    return float(value)


def positive_number(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        UserError: For anything else.
    """
    number = real_number(name, value)
    if number <= 0.0:
        raise UserError(f"{name}: found {number:g}; must be positive")
    return number


def seed_number(value: Any) -> int:
    """A seed: a 64-bit integer, signed or unsigned. A larger one would be truncated to another seed.

    Raises:
        UserError: For any other.
    """
    seed = whole_number("seed", value)
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed: found {seed}; must be a whole number of 64 bits, below 2^64")
    return seed


def check_rows(first: int, n: int) -> None:
    """Refuse samples beyond those with distinct noise (`random`).

    Raises:
        UserError: For numbers of samples from 2^48 on.
    """
    if first + n > MOST_ROWS:
        raise UserError(f"start: found {first}; samples are numbered from 0 to 2^48 - 1")


def row_numbers(name: str, value: Any, n: int) -> Tensor:
    """The numbers of n samples, which key their noise: int64 (n,).

    Raises:
        UserError: For any other shape, and numbers that are not whole, not from 0 to 2^48 - 1, or not all different.
    """
    rows = whole_labels(value, name)
    if len(rows) != n:
        raise UserError(f"{name}: found {len(rows)} for {n} images; accepted: one each, or none at all")
    if n and not 0 <= int(rows.min()) <= int(rows.max()) < MOST_ROWS:
        raise UserError(f"{name}: found {int(rows.min())} to {int(rows.max())}; accepted: 0 to 2^48 - 1")
    if len(rows.unique()) < n:
        raise UserError(f"{name}: found {int(rows.mode().values)} more than once; each image has a number of its own")
    return rows


def switch(name: str, value: Any) -> bool:
    """True or false, from Python or numpy.

    Raises:
        UserError: For anything else.
    """
    number = isinstance(value, Tensor | Integral) or type(value).__name__ == "bool"  # numpy's is not a Number
    if number and value in (True, False):
        return bool(value)
    raise UserError(f"{name}: found {value!r}; accepted: True or False")


@lru_cache
def field_types(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass, whether its module has string annotations or not."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def as_fields(types: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are among the fields of these types, their numbers and switches converted.

    Raises:
        UserError: For a value of another type.
    """
    checks = {int: whole_number, float: real_number, bool: switch}
    checks |= {int | None: whole_number, float | None: real_number}
    return {
        name: checks[types[name]](name, value) if value is not None and types[name] in checks else value
        for name, value in options.items()
        if name in types
    }


def check_callable(name: str, value: Any) -> None:
    """Refuse a callback that is not callable; None is allowed."""
    if value is not None and not callable(value):
        raise UserError(f"{name}: found {value!r}; needs a function")


def float_type(value: Any) -> torch.dtype:
    """float32 or float64: of torch, of numpy, or by name.

    Raises:
        UserError: For any other.
    """
    name = getattr(value, "__name__", None) or str(value)
    found = value if isinstance(value, torch.dtype) else DTYPES.get(name.removeprefix("torch."))
    if found not in (torch.float32, torch.float64):
        raise UserError(f"dtype: found {value}; the solver's state is float32 or float64")
    return found


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor of a tensor, an array or a list of numbers, without its graph.

    Raises:
        UserError: If it does not contain numbers.
    """
    try:
        found = as_tensor(value)
    except REFUSED:
        needs = "a dense one, with values" if isinstance(value, Tensor) else "a tensor or an array of numbers"
        raise UserError(f"{name}: found {described(value)}; needs {needs}") from None
    return normal(found.detach())


def reals(name: str, value: Any) -> Tensor:
    """Real numbers in float32 or float64; a tensor keeps its autograd graph.

    Raises:
        UserError: For anything else, including level indices.
    """
    x = value if isinstance(value, Tensor) else tensor_of(name, value)
    if not x.is_floating_point():
        raise UserError(f"{name}: found {x.dtype}; needs real numbers")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def real_data(name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """Real-valued data, (N, *shape), float32 or float64.

    Raises:
        UserError: For level indices, numbers that are not finite, another shape, or none.
    """
    x = tensor_of(name, value)
    if not x.is_floating_point() or tuple(x.shape[1:]) != tuple(shape) or x.ndim == 0 or not len(x):
        wanted = ", ".join(map(str, ("n", *shape)))
        raise UserError(f"{name}: found {x.dtype} of shape {tuple(x.shape)}; needs floats of shape ({wanted})")
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{name}: has values that are not finite")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def type_of_levels(levels: int) -> torch.dtype:
    """The type that level indices are held in: uint8, or int32 for more than 256 (torch's uint16 lacks functions)."""
    return torch.uint8 if levels <= 256 else torch.int32


def level_data(name: str, value: Any, levels: int | None) -> Tensor:
    """Images of level indices (`type_of_levels`), from integers of any type, or booleans for two levels.

    Raises:
        UserError: For real numbers, and values that are not level indices.
    """
    x = tensor_of(name, value)
    most = (levels or 256) - 1
    if x.dtype == torch.bool and levels == 2:
        return x.to(torch.uint8)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        span = f" from {float(x.min()):.4g} to {float(x.max()):.4g}" if x.is_floating_point() and x.numel() else ""
        raise UserError(
            f"{name}: found {x.dtype}{span}; a likelihood is of levels, 0 to {most} (log_density takes real numbers)"
        )
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch knows no least or greatest of these
        x = x.to(torch.int64)
    low, high = map(int, x.aminmax()) if x.numel() and not (x.dtype == torch.uint8 and most == 255) else (0, 0)
    if not 0 <= low <= high <= most:
        raise UserError(f"{name}: found levels {low} to {high}; accepted: 0 to {most}")
    return x.to(type_of_levels(most + 1))


def class_labels(name: str, label: Any, classes: int, n: int, null: bool = False) -> Tensor:
    """Class labels for n samples, int64 of shape (n,), from one label or one per sample.

    Args:
        name: The argument, for messages.
        label: The labels.
        classes: The number of classes.
        n: The number of samples.
        null: Whether `classes` itself, the null label, is allowed.

    Raises:
        UserError: For a label that is not an integer or not one of the classes, or a wrong number of labels.
    """
    labels = whole_labels(label, name)
    if len(labels) not in (1, n):
        raise UserError(f"{name}: found {len(labels)} labels for {n} samples; accepted: one label, or one a sample")
    wrong = labels[(labels < 0) | (labels >= classes + null)]
    if len(wrong):
        raise UserError(f"{name}: found {int(wrong[0])}; the model has the classes 0 to {classes - 1}")
    return labels.expand(n)


def cond_for(cond: Any, classes: int, n: int, parts: Sequence[Part] = ()) -> Tensor | Condition:
    """The argument `cond=` for n samples: labels for a model with classes, else another condition of the network, which
    may say its parts.

    Raises:
        UserError: As `class_labels`, `condition_for`, `of_parts`.
    """
    if parts:
        return of_parts(parts, cond, n)
    if classes and isinstance(cond, Mapping) and list(cond) == [LABEL]:
        cond = classes if cond[LABEL] is None else cond[LABEL]
        return class_labels("cond", cond, classes, n, null=True)
    if classes and not isinstance(cond, Condition | tuple):
        return class_labels("cond", cond, classes, n)
    return condition_for("cond", cond, n)


def path_times(t: Any, n: int) -> Tensor:
    """Times of n samples as a tensor of shape () or (n,).

    They are from 0 to 1; computed ones (`Retimed`) may lie beyond an end, where the formula of the path extends. Other
    numbers, such as the steps of a chain, are refused; tensors on a GPU are not checked, to avoid a synchronisation.

    Raises:
        UserError: For another shape, and anything that is not a time.
    """
    beyond = _BEYOND
    if not (isinstance(t, Tensor) and t.is_floating_point()):
        t, beyond = tensor_of("t", t), 0.0
        if t.is_complex() or t.dtype == torch.bool:
            raise UserError(f"t: found {t.dtype}; needs times from 0 (data) to 1 (noise)")
        t = t.double()
    if t.ndim and t.shape != (n,):
        raise UserError(f"t: found shape {tuple(t.shape)}; needs one time, or one for each of {n} samples")
    if can_be_looked_at(t):
        for found in map(float, t.detach().aminmax() if t.ndim else (t.detach(),)):
            if found < -beyond or found > 1.0 + beyond:
                raise UserError(f"t: found {found:g}; times are from 0 (data) to 1 (noise)")
    return t


def can_be_looked_at(x: Tensor) -> bool:
    """Whether values can be read without a synchronisation: not on a GPU, in a compiled graph, or under vmap."""
    if x.device.type != "cpu" or not x.numel() or torch.compiler.is_compiling():
        return False
    return not is_batchedtensor(x)


def cond_of_batch(cond: Any, classes: int, n: int, parts: Sequence[Part] = ()) -> Any:
    """The `cond` that a denoiser receives for n samples: labels as int64 (n,), with `classes` as the null label.

    For a model without classes, another condition of the network, one entry per sample, or its parts by name.

    Raises:
        UserError: As `class_labels`, `condition_for`, `of_parts`.
    """
    if cond is None or isinstance(cond, Condition):
        if cond is not None and len(cond) != n:
            raise UserError(f"cond: found {len(cond)} entries for {n} samples; needs one each")
        return cond
    if parts:
        return of_parts(parts, cond, n)
    if isinstance(cond, Mapping) and classes:
        return cond_for(cond, classes, n)
    if not classes:
        if isinstance(cond, Tensor) and cond.ndim and len(cond) == n:
            return cond
        return condition_for("cond", cond, n)
    if isinstance(cond, Tensor) and cond.dtype == torch.long and cond.shape == (n,) and not can_be_looked_at(cond):
        return cond
    return class_labels("cond", cond, classes, n, null=True)


def whole_labels(label: Any, name: str = "label") -> Tensor:
    """Class labels as int64 of shape (n,).

    Raises:
        UserError: For anything but integers, or more than one number per sample.
    """
    try:
        found = tensor_of(name, label)
    except UserError:
        raise UserError(f"{name}: found {shown(label)}; must be a whole number, or one a sample") from None
    if found.ndim > 1 and found.numel() != len(found):
        raise UserError(
            f"{name}: found shape {tuple(found.shape)}; a label is one whole number a sample "
            "(cond= of a model without classes takes a network's own condition)"
        )
    whole = found.is_floating_point() and bool((found.abs() < 2**53).all()) and bool((found == found.round()).all())
    if found.dtype == torch.bool or found.is_complex() or (found.is_floating_point() and not whole):
        raise UserError(f"{name}: found {shown(label)}; must be a whole number, or one a sample")
    return found.reshape(-1).to(torch.long)


def normal(value: Any) -> Any:
    """A copy of a tensor created in inference mode, so that it can take part in gradients; else the tensor itself.

    Also within tuples, lists, dictionaries and conditions.
    """
    if isinstance(value, Tensor):
        if not value.is_inference():
            return value
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, Condition):
        return value if normal(value.parts) is value.parts and normal(value.null) is value.null else value.each(normal)
    if type(value) is dict:
        made = {key: normal(one) for key, one in value.items()}
        return value if all(made[key] is one for key, one in value.items()) else made
    if type(value) in (tuple, list):
        made = [normal(one) for one in value]
        return value if all(a is b for a, b in zip(made, value, strict=True)) else type(value)(made)
    return value


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """The function, behaving in inference mode as in `torch.no_grad()`."""

    anything = cast("Callable[..., R]", function)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> R:
        if not torch.is_inference_mode_enabled() and normal(arguments) is arguments and normal(options) is options:
            return anything(*arguments, **options)
        gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            return anything(*normal(arguments), **normal(options))

    return cast("Callable[P, R]", call)
