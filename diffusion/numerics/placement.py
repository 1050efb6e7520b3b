"""Where numbers are: on the device of the networks or, where that has no float64, on the CPU.

Schedules, noise, solvers' states and likelihoods are computed in float64 or need its digits. On a device without it
(Apple's `mps`) the networks alone are: each takes its arguments from the CPU, float64 as float32, and gives its answer
back there, and gradients go the same way. All else is the same as on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

WITHOUT_FLOAT64 = {"mps"}  # types of devices
_CPU = torch.device("cpu")


def for_numbers(device: torch.device) -> torch.device:
    """The device itself, or the CPU for one without float64."""
    return _CPU if device.type in WITHOUT_FLOAT64 else device


def weights_on(module: nn.Module) -> torch.device:
    """The device of a module's weights."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return _CPU if first is None else first.device


def device_of(module: nn.Module) -> torch.device:
    """Where a module's data and states are: by its first parameter or buffer; the CPU if it has none."""
    return for_numbers(weights_on(module))


class Copies:
    """A tensor of an object that is no module, and its copies on other devices, each made once.

    The CPU waits for a copy to a device: a loop that asks for one in each step would wait in each.
    """

    def __init__(self, value: Tensor):
        self._on = {value.device: value}
        self._first = value

    def on(self, device: torch.device) -> Tensor:
        """The tensor there."""
        if device not in self._on:
            with torch.inference_mode(False):  # it may also be used where gradients are taken
                self._on[device] = self._first.to(device)
        return self._on[device]


class Placed(nn.Module):
    """A module with numbers of its own besides its networks: these alone go to a device without float64."""

    def networks_within(self) -> Iterable[nn.Module]:
        """The modules that go there: by default all children."""
        return self.children()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Placed:
        if fn(torch.empty(0)).device.type not in WITHOUT_FLOAT64:
            return super()._apply(fn, recurse)
        for network in self.networks_within():
            network._apply(fn)
            if not isinstance(network, Placed) and not getattr(network, "_is_carried", False):
                network._is_carried = True  # type: ignore[assignment]
                network.register_forward_pre_hook(_carry_in, with_kwargs=True)
                network.register_forward_hook(_carry_out)
        return self


def _carry_in(network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    where = weights_on(network)
    if where.type not in WITHOUT_FLOAT64:
        return None

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.float() if value.dtype == torch.float64 else value).to(where)

    return tree_map(there, (arguments, named))


def _carry_out(network: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    def back(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) and value.device.type in WITHOUT_FLOAT64 else value

    return tree_map(back, output)
