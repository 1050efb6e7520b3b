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

An average of a *width* follows a power of time instead, p(t) = (gamma + 1) t^gamma / T^(gamma + 1) at the end T (Karras
et al. 2024, "Analyzing and improving the training dynamics", arXiv 2312.02696, sec. 3.1):

    average <- decay * average + (1 - decay) * weights,    decay = (1 - B / N)^(gamma + 1).

Its width is the standard deviation of p over T, (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (app. C.1): the
share of the training that it looks back on. Of snapshots of two such averages one of any width can be made after
training, by least squares between the profiles (`reconstruction`, sec. 3.2 and app. C.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..denoisers.given import positive_number
from ..errors import UserError
from ..numerics.arrays import whole_number
from .distributed.shards import part, part_of, whole

AVERAGE_KEY = "weight_average"  # of checkpoints
WIDEST = 12**-0.5  # the width of a plain mean
_RCOND = 1e-12  # singular values of the profiles' products below this share of the largest are noise


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


def exponent(width: float | int) -> float:
    """The gamma of a power of time with this width.

    Raises:
        UserError: For a width that is not above 0 and below that of a plain mean, 12^(-1/2).
    """
    width = positive_number("width", width)
    if width >= WIDEST:
        raise UserError(f"width: found {width:g}; must be below {WIDEST:.4f}, that of the mean over the whole training")
    low, high = 0.0, 1.0 / width  # gamma + 2 is below 1 / width
    while (middle := 0.5 * (low + high)) not in (low, high):
        wider = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wider else (low, middle)
    return low


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of two profiles' product: of each the time at which it ends, and its gamma."""
    (t_a, gamma_a), (t_b, gamma_b) = sorted((a, b))
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (t_a / t_b) ** gamma_b / t_b


def reconstruction(kept: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> tuple[list[float], float]:
    """The factors of kept averages, of sum one, whose sum is nearest to a wanted profile, and its relative error.

    Args:
        kept: The time and the gamma of each average.
        wanted: Those of the one that is made of them.

    Returns:
        The factors, and |sum - wanted| / |wanted| in the L2 norm of functions of time.
    """
    end = max(time for time, _ in (*kept, wanted))
    profiles, target = [(time / end, gamma) for time, gamma in kept], (wanted[0] / end, wanted[1])
    n = len(profiles)
    # the least squares with the sum fixed (a multiplier in the last row): weights that stand still are kept as they are
    table, right = torch.zeros(n + 1, n + 1, dtype=torch.float64), torch.ones(n + 1, dtype=torch.float64)
    table[:n, :n] = torch.tensor([[overlap(a, b) for b in profiles] for a in profiles], dtype=torch.float64)
    table[:n, n] = table[n, :n] = 1.0
    right[:n] = torch.tensor([overlap(a, target) for a in profiles], dtype=torch.float64)
    factors = torch.linalg.lstsq(table, right, rcond=_RCOND, driver="gelsd").solution[:n]
    square = factors @ table[:n, :n] @ factors - 2.0 * factors @ right[:n] + overlap(target, target)
    return factors.tolist(), math.sqrt(max(0.0, float(square)) / overlap(target, target))


class Average:
    """The average of a module's parameters and persistent buffers.

    The copy is float32 (or float64) whatever the module's precision: with a decay of 0.9999 a bfloat16 average would
    round every update away. Floating buffers are averaged too; integer ones (counters) are copied.

    Args:
        module: What is trained; its present weights start the average.
        half_life: After how many images the influence of a weight has halved.
        ramp_up: Longest half-life as a share of the images seen, see `decay`; None for no ramp.
        width: In place of a half-life, the width of an average that follows a power of time.

    Attributes:
        images_seen: What `update` has counted.

    Raises:
        UserError: The half-life, the ramp-up or the width is not a positive number; both or neither of half-life and
            width are given.
    """

    def __init__(self, module: Any, half_life: Any = None, ramp_up: Any = 0.05, width: Any = None) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"module: found a {type(module).__name__}; needs a torch.nn.Module")
        if (half_life is None) == (width is None):
            raise UserError(f"ema.half_life: found {half_life}, and the width {width}; an average has one of them")
        self.module: nn.Module = module
        self.width = width
        self.exponent = None if width is None else exponent(width)
        self.half_life = None if half_life is None else positive_number("ema.half_life", half_life)
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
        weight = 1.0 - self._decay(images)
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

    def _decay(self, images: int) -> float:
        if self.exponent is not None:
            return (1.0 - images / self.images_seen) ** (self.exponent + 1.0)
        assert self.half_life is not None
        return decay(images, self.images_seen, self.half_life, self.ramp_up)

    def _settings(self) -> dict[str, Any]:
        """What an average that goes on has to have in common with the stored one."""
        if self.width is not None:
            return {"width": self.width}
        # the lists of one are those of the first checkpoints, which could hold several averages
        return {"half_lives": [self.half_life], "ramp_up": self.ramp_up}

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
        return {**self._settings(), "images_seen": self.images_seen, "averages": [self.whole()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, onto the devices of the present averages.

        Raises:
            UserError: The state was made with another half-life, another ramp-up or another network.
        """
        for key, expected in self._settings().items():
            if state.get(key) != expected:
                raise UserError(
                    f"ema.{key.replace('lives', 'life')}: {expected} found, but the checkpoint was trained with "
                    f"{state.get(key)}; resume with that value or start a new run."
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
