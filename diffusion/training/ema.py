"""Exponential moving averages of the weights, by half-life.

    average = ema.Average(model, half_life=2000)
    for x in batches:
        ...  # a step of the optimiser
        average.update(len(x))
    with average.applied():
        samples = diffusion.sample(model, 16)

A half-life is counted in training images and not in steps, so that it means the same at every batch size. After a step
over B images, with N images seen in all (the step's own among them),

    decay = 0.5 ** (B / min(half_life, ramp_up * N)),        average <- decay * average + (1 - decay) * weights

(Karras et al. 2022, "Elucidating the design space", appendix F.2, and the EDM2 code). The ramp-up keeps the average
from remembering the random start: it never looks back further than a fixed share of the training so far. The counter N
is part of the state; a resumed average that had lost it would ramp up a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..denoisers.given import positive_number, whole_number
from ..errors import UserError
from .distributed.shards import part, part_of, whole

AVERAGE_KEY = "weight_average"  # of checkpoints


def decay(images: int, images_seen: int, half_life: float | int, ramp_up: float | int | None) -> float:
    """Return the factor that the average keeps in one step.

    Args:
        images: Images in this step, over all processes.
        images_seen: Images seen so far, this step's included.
        half_life: Images after which the influence of a weight has halved.
        ramp_up: The half-life is never longer than this share of `images_seen`; None for no ramp.
    """
    effective = half_life if ramp_up is None else min(half_life, images_seen * ramp_up)
    return 0.5 ** (images / effective)


class Average:
    """The average of a module's parameters and persistent buffers.

    The copy is float32 (or float64) whatever the module's precision: with a decay of 0.9999 a bfloat16 average would
    round every update away. Floating buffers are averaged too; integer ones (counters) are copied.

    Args:
        module: What is trained; its present weights start the average.
        half_life: After how many images the influence of a weight has halved.
        ramp_up: Longest half-life as a share of the images seen, see `decay`; None for no ramp.

    Attributes:
        images_seen: What `update` has counted.

    Raises:
        UserError: The half-life or the ramp-up is not a positive number.
    """

    def __init__(self, module: Any, half_life: Any, ramp_up: Any = 0.05) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"module: found a {type(module).__name__}; needs a torch.nn.Module")
        self.module: nn.Module = module
        self.half_life = positive_number("ema.half_life", half_life)
        self.ramp_up = None if ramp_up is None else positive_number("ema.ramp_up", ramp_up)
        self.images_seen = 0
        # of sharded weights each process averages its part
        self._layout = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, DTensor)}
        self._average = _copies(module)

    @torch.no_grad()
    def update(self, images: Any = 1) -> None:
        """Move the average towards the module's weights, after a step of the optimiser.

        Args:
            images: The images of the step, over all processes. Where it is left out, half-lives are in steps.

        Raises:
            UserError: The images are not a whole number of at least 1.
        """
        images = whole_number("images", images, 1)
        self.images_seen += images
        weight = 1.0 - decay(images, self.images_seen, self.half_life, self.ramp_up)
        pairs: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}  # of a device that takes networks alone, two
        for name, tensor in _tensors(self.module).items():
            if tensor.is_floating_point():
                averaged, current = pairs.setdefault(tensor.device, ([], []))
                averaged.append(self._average[name])
                current.append(tensor.to(self._average[name].dtype))
            else:
                self._average[name].copy_(tensor)
        for averaged, current in pairs.values():
            torch._foreach_lerp_(averaged, current, weight)

    def weights(self) -> dict[str, Tensor]:
        """Return the averages by the names of the module's state dict (not copies)."""
        return dict(self._average)

    def copy_to(self, module: nn.Module | None = None) -> None:
        """Write the averages into a module of the same shapes: for good, and by default into the averaged one.

        Raises:
            UserError: The module has other weights.
        """
        targets = _tensors(self.module if module is None else module)
        if {n: t.shape for n, t in targets.items()} != {n: t.shape for n, t in self._average.items()}:
            raise UserError("module: its weights have other names or shapes than those that are averaged")
        _assign(targets, self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block with the averages in the module; the raw weights come back at its end, and on any exception.

        The values are exchanged in place, so that optimisers, compiled graphs and DDP keep their references.
        """
        tensors = _tensors(self.module)
        raw = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            _assign(tensors, self._average)
            yield
        finally:
            _assign(tensors, raw)

    def whole(self) -> dict[str, Tensor]:
        """As `weights`, with those of sharded weights gathered: all processes call this."""
        return {name: whole(own, self._layout.get(name, own)) for name, own in self._average.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return settings, counter and averages as plain types and tensors (fit for `weights_only=True`).

        Averages of sharded weights are gathered: all processes call this.
        """
        return {  # the lists of one are those of the first checkpoints, which could hold several averages
            "half_lives": [self.half_life],
            "ramp_up": self.ramp_up,
            "images_seen": self.images_seen,
            "averages": [self.whole()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, onto the devices of the present averages.

        Raises:
            UserError: The state was made with another half-life, another ramp-up or another network.
        """
        for key, expected in (("half_lives", [self.half_life]), ("ramp_up", self.ramp_up)):
            if state[key] != expected:
                raise UserError(
                    f"ema.{key.replace('lives', 'life')}: {expected} found, but the checkpoint was trained with "
                    f"{state[key]}; resume with that value or start a new run."
                )
        (stored,) = state["averages"]
        layout = {name: self._layout.get(name, tensor) for name, tensor in self._average.items()}
        if {n: t.shape for n, t in layout.items()} != {n: t.shape for n, t in stored.items()}:
            raise UserError("the checkpoint's averaged weights belong to another network; start a new run.")
        _assign(self._average, {name: part_of(tensor, layout[name]) for name, tensor in stored.items()})
        self.images_seen = int(state["images_seen"])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: part(value) for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _copies(module: nn.Module) -> dict[str, Tensor]:
    def copy(tensor: Tensor) -> Tensor:
        wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(wide, copy=True)

    return {name: copy(tensor) for name, tensor in _tensors(module).items()}


@torch.no_grad()
def _assign(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])
