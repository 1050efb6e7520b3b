"""Exponential moving averages of the weights, by half-life.

A half-life is counted in training images and not in steps, so that it means the same at every batch size. After a step
over B images, with N images seen in all (the step's own among them),

    decay = 0.5 ** (B / min(half_life, ramp_up * N)),        average <- decay * average + (1 - decay) * weights

(Karras et al. 2022, "Elucidating the design space", appendix F.2, and the EDM2 code). The ramp-up keeps the average
from remembering the random start: it never looks back further than a fixed share of the training so far. The counter N
is part of the state; a resumed average that had lost it would ramp up a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion.errors import UserError
from diffusion.training.shards import part, part_of, whole

CHECKPOINT_KEY = "weight_average"


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


class WeightAverage:
    """Averages of a module's parameters and persistent buffers, one for each half-life.

    The copies are float32 (or float64) whatever the module's precision: with a decay of 0.9999 a bfloat16 average would
    round every update away. Floating buffers are averaged too; integer ones (counters) are copied.

    Args:
        module: The module whose present weights start the averages.
        half_lives: Half-lives in images, each positive.
        ramp_up: Longest half-life as a share of the images seen, see `decay`; None for no ramp.

    Raises:
        UserError: A half-life or the ramp-up is not positive.
    """

    def __init__(
        self, module: nn.Module, half_lives: Sequence[float | int], ramp_up: float | int | None = 0.05
    ) -> None:
        if not half_lives or any(half_life <= 0 for half_life in half_lives):
            raise UserError(f"ema.half_life: {list(half_lives)} found; positive numbers of images are accepted.")
        if ramp_up is not None and ramp_up <= 0:
            raise UserError(f"ema.ramp_up: {ramp_up} found; a positive share of the images seen, or null, is accepted.")
        self.half_lives = [float(half_life) for half_life in half_lives]
        self.ramp_up = ramp_up
        self.images_seen = 0
        # of sharded weights each process averages its part
        self._layout = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, DTensor)}
        self._averages = [_copies(module) for _ in self.half_lives]

    @torch.no_grad()
    def update(self, module: nn.Module, images: int) -> None:
        """Move every average towards the weights of `module` after an optimiser step over `images` images."""
        self.images_seen += images
        for half_life, average in zip(self.half_lives, self._averages, strict=True):
            weight = 1.0 - decay(images, self.images_seen, half_life, self.ramp_up)
            averaged, current = [], []
            for name, tensor in _tensors(module).items():
                if tensor.is_floating_point():
                    averaged.append(average[name])
                    current.append(tensor.to(average[name].dtype))
                else:
                    average[name].copy_(tensor)
            torch._foreach_lerp_(averaged, current, weight)

    def weights(self, index: int = 0) -> dict[str, Tensor]:
        """Return the average of half-life number `index`, by the names of the module's state dict (not copies)."""
        return dict(self._averages[index])

    @contextmanager
    def applied(self, module: nn.Module, index: int = 0) -> Iterator[None]:
        """Run a block with the averaged weights in `module`; the raw ones come back at its end, and on any exception.

        The values are exchanged in place, so that optimisers, compiled graphs and DDP keep their references.
        """
        tensors = _tensors(module)
        raw = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            _assign(tensors, self._averages[index])
            yield
        finally:
            _assign(tensors, raw)

    def whole(self, index: int = 0) -> dict[str, Tensor]:
        """As `weights`, with those of sharded weights gathered: all processes call this."""
        average = self._averages[index]
        return {name: whole(own, self._layout.get(name, own)) for name, own in average.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return settings, counter and averages as plain types and tensors (fit for `weights_only=True`).

        Averages of sharded weights are gathered: all processes call this.
        """
        return {
            "half_lives": list(self.half_lives),
            "ramp_up": self.ramp_up,
            "images_seen": self.images_seen,
            "averages": [self.whole(index) for index in range(len(self._averages))],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, onto the devices of the present averages.

        Raises:
            UserError: The state was made with other half-lives, another ramp-up or another network.
        """
        for key, expected in (("half_lives", self.half_lives), ("ramp_up", self.ramp_up)):
            if state[key] != expected:
                raise UserError(
                    f"ema.{key.replace('lives', 'life')}: {expected} found, but the checkpoint was trained with "
                    f"{state[key]}; resume with that value or start a new run."
                )
        for own, stored in zip(self._averages, state["averages"], strict=True):
            layout = {name: self._layout.get(name, tensor) for name, tensor in own.items()}
            if {n: t.shape for n, t in layout.items()} != {n: t.shape for n, t in stored.items()}:
                raise UserError("the checkpoint's averaged weights belong to another network; start a new run.")
            _assign(own, {name: part_of(tensor, layout[name]) for name, tensor in stored.items()})
        self.images_seen = int(state["images_seen"])


class EMACallback(Callback):
    """Averages the weights once per optimiser step and keeps the average under its own key of the checkpoint.

    The checkpoint's `state_dict` always holds the raw weights. With `validate`, validation runs on the first average.

    Args:
        half_lives: Half-lives in images.
        images_per_step: Images per optimiser step: batch x accumulation x processes.
        ramp_up: See `decay`.
        submodule: Dotted path of the submodule to average; "" for the whole LightningModule.
        validate: Whether the averaged weights are in place during validation.
    """

    def __init__(
        self,
        half_lives: Sequence[float | int],
        images_per_step: int,
        ramp_up: float | int | None = 0.05,
        submodule: str = "",
        validate: bool = True,
    ) -> None:
        self.half_lives = list(half_lives)
        self.images_per_step = images_per_step
        self.ramp_up = ramp_up
        self.submodule = submodule
        self.validate = validate
        self.average: WeightAverage | None = None
        self._restored: Mapping[str, Any] | None = None
        self._step = 0
        self._swap = ExitStack()

    @contextmanager
    def applied(self, pl_module: LightningModule, index: int = 0) -> Iterator[None]:
        """Run a block with the averaged weights in place (see `WeightAverage.applied`)."""
        assert self.average is not None, "the average exists from on_fit_start on"
        with self.average.applied(pl_module.get_submodule(self.submodule), index):
            yield

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, and not in `setup`: the module has reached its device, and a checkpoint, if any, has been read.
        self.average = WeightAverage(pl_module.get_submodule(self.submodule), self.half_lives, self.ramp_up)
        if self._restored is not None:
            self.average.load_state_dict(self._restored)
            self._restored = None

    def whole(self) -> dict[str, Tensor]:
        """The first average, gathered where the weights are sharded: all processes call this."""
        assert self.average is not None, "the average exists from on_fit_start on"
        return self.average.whole()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        assert self.average is not None
        self.average.update(pl_module.get_submodule(self.submodule), self.images_per_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validate and self.average is not None:
            self._swap.enter_context(self.applied(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap.close()  # checkpoint callbacks come after every other, so what they write is raw again

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            checkpoint[CHECKPOINT_KEY] = self.average.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT_KEY not in checkpoint:
            raise UserError("the checkpoint holds no averaged weights, so this run cannot continue from it.")
        self._restored = checkpoint[CHECKPOINT_KEY]
        if self.average is not None:  # sharded weights are read after `on_fit_start`
            self.average.load_state_dict(checkpoint[CHECKPOINT_KEY])
            self._restored = None


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
