"""Calling networks with different signatures in the same way: (x, c_noise, condition) to one tensor.

Accepted: a module or a function, of two arguments or with the condition as the third or as a keyword; it may return a
tensor, a tuple or list that begins with it, or an object or dict with a `sample` (diffusers).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, in_one_line

# Names of a keyword-only condition.
_KEYWORDS = ("labels", "class_labels", "label", "y", "cond", "condition", "context", "encoder_hidden_states")
_WRAP = "wrap it: a module whose forward(x, c_noise, labels) returns one tensor (docs/extending.md)"


class Function(nn.Module):
    """A function as a module, so that its calls can be counted; the modules it calls are moved with it."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        while isinstance(function, partial):
            function = function.func
        found = [function, getattr(function, "__self__", None)]
        if inspect.isfunction(function):
            names = inspect.getclosurevars(function)
            found += [*names.nonlocals.values(), *names.globals.values()]
        self.owners = nn.ModuleList(thing for thing in found if isinstance(thing, nn.Module))

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)


def as_module(network: Any) -> nn.Module:
    """The network as a module.

    Raises:
        UserError: If it is not callable.
    """
    if isinstance(network, nn.Module) and not isinstance(network, torch.jit.ScriptModule):
        return network
    if isinstance(network, type) or not callable(network):
        raise UserError(f"network: found {str(network)[:60]}; needs a module or a function of (x, c_noise, labels)")
    return Function(network)


@dataclass(frozen=True)
class Takes:
    """How a network takes its condition.

    Args:
        condition: `third`: as the third argument; `none`: not at all; else the keyword.
        needed: Whether it must be passed, as None if there is none.
    """

    condition: str
    needed: bool

    def arguments(self, cond: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments after x and c_noise.

        Raises:
            UserError: For a condition that the network does not take.
        """
        if cond is None and not self.needed:
            return (), {}
        if self.condition == "third":
            return (cond,), {}
        if self.condition == "none":
            raise UserError(
                "network: takes (x, c_noise) alone, but a condition is given; let its forward take labels, too"
            )
        return (), {self.condition: cond}


def takes_of(network: nn.Module) -> Takes:
    """How a network takes its condition, according to its signature.

    Raises:
        UserError: For one that cannot take x and c_noise.
    """
    parameters = _parameters(network)
    if parameters is None:
        return Takes("third", needed=True)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return Takes("third", needed=True)
    if len(positional) > 2:
        return Takes("third", needed=positional[2].default is inspect.Parameter.empty)
    if len(positional) < 2:
        names = ", ".join(p.name for p in parameters)
        raise UserError(f"network: takes ({names}); it must take (x, c_noise), and labels where there are classes")
    by_name = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name in _KEYWORDS]
    if not by_name:
        return Takes("none", needed=False)
    return Takes(by_name[0].name, needed=by_name[0].default is inspect.Parameter.empty)


def _parameters(network: nn.Module) -> list[inspect.Parameter] | None:
    """Those of `forward`, or of the network that a wrapper hands everything on to (torch.compile, DataParallel); None
    if unknown.
    """
    forward = network.function if isinstance(network, Function) else network.forward
    if isinstance(forward, nn.Module):
        return _parameters(forward)
    inner, own = getattr(network, "_orig_mod", None) or getattr(network, "module", None), _signature(forward)
    hands_on = own is None or any(parameter.kind == parameter.VAR_POSITIONAL for parameter in own)
    return _parameters(inner) if hands_on and isinstance(inner, nn.Module) else own


def _signature(forward: Any) -> list[inspect.Parameter] | None:
    if (schema := getattr(forward, "schema", None)) is None:
        try:
            return list(inspect.signature(forward).parameters.values())
        except (TypeError, ValueError):
            return None
    return [  # of TorchScript
        inspect.Parameter(
            argument.name,
            inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default_value if argument.has_default_value() else inspect.Parameter.empty,
        )
        for argument in schema.arguments
        if argument.name != "self"
    ]


def dtype_of(network: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of most of the network's floating-point parameters, by count; `default` if it has none.

    A counter, a table in double precision or a first layer in another precision is thus ignored; if layers differ,
    their own casts, or torch.autocast, apply.
    """
    counts = Counter[torch.dtype]()
    for parameter in network.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else default


def output_tensor(output: Any) -> Tensor:
    """The tensor in a network's output.

    Raises:
        UserError: If there is none.
    """
    found = output
    if isinstance(output, Mapping) and "sample" in output:
        found = output["sample"]
    elif isinstance(output, tuple | list) and len(output):
        found = output[0]
    elif not isinstance(output, Tensor):
        found = getattr(output, "sample", None)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        what = f"numbers of type {found.dtype}" if isinstance(found, Tensor) else f"a {type(output).__name__}"
        raise UserError(f"network: returned {what}; needs a tensor of real numbers, or one as .sample; {_WRAP}")
    return found


@contextmanager
def outside_code(x: Tensor, time: Tensor, labels: Any) -> Iterator[None]:
    """Within the block, the network of somebody else is called.

    Raises:
        UserError: For whatever it raises, in one line, with what it was given.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        given = ", ".join(f"{name} {_described(value)}" for name, value in (("x", x), ("time", time)))
        hint = "; if it needs labels, say labels= in adopt" if labels is None else ""
        raise UserError(
            f"network: failed on {given}, labels {_described(labels)} ({in_one_line(error, 160)}); call= of adopt "
            f"calls it in another way{hint}"
        ) from error


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)[:40]
    ends = (
        f" from {value.min()} to {value.max()}" if value.ndim == 1 and len(value) and value.device.type == "cpu" else ""
    )
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{ends}"


def check_output(output: Tensor, x: Tensor, needed: tuple[int, ...], name: str = "network") -> None:
    """Refuse an output of another shape, which would be broadcast against x.

    Raises:
        UserError: With both shapes.
    """
    if output.shape == needed:
        return
    same = "the shape of x" if needed == tuple(x.shape) else f"{needed}"
    hint = ""
    if len(output.shape) == len(needed) > 1 and output.shape[1] == 2 * needed[1]:
        hint = "; twice the channels are a mean and a variance: wrap it and return the first half"
    raise UserError(
        f"{name}: returned {tuple(output.shape)} for x of shape {tuple(x.shape)}; it must return {same}{hint}"
    )
