"""What calls are given, as people have it: arrays, lists, numbers of other libraries, taken as meant or told in a line.

Inference mode is left at the borders, too: gradients are taken within (guidance, likelihoods), and what was made in
inference mode cannot take part in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from ..errors import UserError
from .condition import Condition, condition_for

P = ParamSpec("P")
R = TypeVar("R")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "single": torch.float32, "double": torch.float64}


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, from Python, numpy or torch.

    Raises:
        UserError: For what is none, or below the least.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name}: found {value!r}; must be a whole number")
    if least is not None and value < least:
        raise UserError(f"{name}: found {value}; must be at least {least}")
    return int(value)


def real_number(name: str, value: Any) -> float:
    """A finite number, from Python, numpy or torch.

    Raises:
        UserError: For what is none.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise UserError(f"{name}: found {value!r}; must be a finite number")
    return float(value)


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
        UserError: For what holds no numbers.
    """
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}: found {str(value)[:60]}; needs a tensor or an array of numbers") from None
    return normal(found.detach())


def real_data(name: str, value: Any, shape: Sequence[int], least: int = 1) -> Tensor:
    """Data of real numbers, (N, *shape), float32 or float64.

    Raises:
        UserError: For levels, numbers that are not finite, another shape, or fewer than `least`.
    """
    x = tensor_of(name, value)
    if not x.is_floating_point() or tuple(x.shape[1:]) != tuple(shape) or x.ndim == 0 or len(x) < least:
        wanted = ", ".join(map(str, ("n", *shape)))
        raise UserError(f"{name}: found {x.dtype} of shape {tuple(x.shape)}; needs floats of shape ({wanted})")
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{name}: has values that are not finite")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def level_data(name: str, value: Any, levels: int | None) -> Tensor:
    """Images of levels, uint8: whole numbers of any type that are levels; true and false of two.

    Raises:
        UserError: For real numbers, and what is no level.
    """
    x = tensor_of(name, value)
    if x.dtype == torch.uint8 or (x.dtype == torch.bool and levels == 2):
        return x.to(torch.uint8)
    most = (levels or 256) - 1
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        span = f" from {float(x.min()):.4g} to {float(x.max()):.4g}" if x.is_floating_point() and x.numel() else ""
        raise UserError(
            f"{name}: found {x.dtype}{span}; a likelihood is of levels in uint8, 0 to {most} "
            "(log_density takes real numbers)"
        )
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) <= most:
        raise UserError(f"{name}: found levels {int(x.min())} to {int(x.max())}; accepted: 0 to {most}")
    return x.to(torch.uint8)


def class_labels(name: str, label: Any, classes: int, n: int) -> Tensor:
    """Class labels for n samples, int64 of shape (n,), of one label or one a sample.

    Args:
        name: The argument, for messages.
        label: The labels.
        classes: The number of classes.
        n: The number of samples.

    Raises:
        UserError: For a label that is no whole number or not one of the classes, or a wrong number of labels.
    """
    labels = whole_labels(label, name)
    if len(labels) not in (1, n):
        raise UserError(f"{name}: found {len(labels)} labels for {n} samples; accepted: one label, or one a sample")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"{name}: found {int(wrong[0])}; the model has the classes 0 to {classes - 1}")
    return labels.expand(n)


def cond_for(cond: Any, classes: int, n: int) -> Tensor | Condition:
    """What is given as `cond=` for n samples: of a model with classes labels, else a network's own condition.

    Raises:
        UserError: As `class_labels`, `condition_for`.
    """
    if classes and not isinstance(cond, Condition | tuple):
        return class_labels("cond", cond, classes, n)
    return condition_for("cond", cond, n)


def whole_labels(label: Any, name: str = "label") -> Tensor:
    """Class labels as int64 of shape (n,).

    Raises:
        UserError: For what is no whole number, or has more than one number a sample.
    """
    try:
        found = torch.as_tensor(label).detach()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}: found {str(label)[:60]!r}; must be a whole number, or one a sample") from None
    if found.ndim > 1 and found.numel() != len(found):
        raise UserError(
            f"{name}: found shape {tuple(found.shape)}; a label is one whole number a sample "
            "(cond= of a model without classes takes a network's own condition)"
        )
    whole = found.is_floating_point() and bool((found == found.round()).all())
    if found.dtype == torch.bool or found.is_complex() or (found.is_floating_point() and not whole):
        raise UserError(f"{name}: found {str(label)[:60]}; must be a whole number, or one a sample")
    return found.reshape(-1).to(torch.long)


def normal(value: Any) -> Any:
    """A copy of what was made in inference mode, which may take part in gradients; else the thing itself.

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
    """The function, in inference mode as it is in `torch.no_grad()`."""

    anything = cast("Callable[..., R]", function)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> R:
        if not torch.is_inference_mode_enabled() and normal(arguments) is arguments and normal(options) is options:
            return anything(*arguments, **options)
        gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            return anything(*normal(arguments), **normal(options))

    return cast("Callable[P, R]", call)
