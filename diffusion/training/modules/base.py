"""The common part of the Lightning modules: what is optimised, averaged and compiled, and what follows training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from ...config import Config
from ...models.build import Data
from ...numerics import random
from ..distributed.shards import is_sharded, shard
from ..optimizers import make_optimizer


class ModelModule(L.LightningModule):
    """A model in training.

    `averaged` names the submodule that the model file holds: its weights are optimised (`trained`) and averaged.

    Args:
        config: The configuration of the run.
        metadata: What makes the checkpoint a model by itself (see `models.load`).
    """

    averaged: ClassVar[str]

    def __init__(self, config: Config, metadata: Mapping[str, str]):
        super().__init__()
        self.config = config
        self.metadata = dict(metadata)
        self.compiles = False
        self._compiled: dict[str, Callable[..., Any]] = {}

    @property
    def model(self) -> nn.Module:
        """The submodule that the model file holds."""
        return self.get_submodule(self.averaged)

    @property
    def trained(self) -> nn.Module:
        """What is optimised: the model, and what only its loss needs."""
        return self.model

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The parts to compile."""

    def seed_step(self, step: int, part: int) -> None:
        """Seed what draws from a generator, dropout, by the step and the part of it that this process works on.

        `torch.manual_seed` would also note, with a traceback, what devices that are not there are to be seeded with.
        """
        seed = random.state_seed(self.config.seed, step, part)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def number(self, value: int) -> int | Tensor:
        """A whole number, as a graph takes it: on the module's device, and written there, not copied from the host."""
        return torch.full((), value, dtype=torch.long, device=self.device) if self.compiles else value

    def compiled(self, name: str) -> Callable[..., Any]:
        """The method of this name, compiled with the networks inside where the run compiles (`compiles`)."""
        if not self.compiles:
            return getattr(self, name)
        if name not in self._compiled:
            if not self._compiled:
                self.prepare()
            self._compiled[name] = torch.compile(getattr(self, name), dynamic=False)
        return self._compiled[name]

    def prepare(self) -> None:
        """Fill what a model computes at its first call and keeps: a graph refers to it, and does not compute it."""

    def configure_model(self) -> None:
        """Shard the networks, where the strategy has a mesh of processes; Lightning calls it once they have met."""
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self.networks, self.model, self.device_mesh["data_parallel"])

    def step_losses(self) -> list[tuple[Tensor, Tensor]]:
        """The losses of this step's data in this process, and their log-SNR, part by part; none for most families."""
        return []

    def is_logged(self) -> bool:
        """Whether the figures of the present step are written: those of others are not worth their computation."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def check_data(self, data: Data) -> None:
        """Refuse data that `finish` could not be done with, before training.

        Raises:
            UserError: For such data.
        """

    fits_after_training = False  # whether `finish` does anything

    def finish(self, data: Data, device: torch.device) -> None:
        """Fit what is fitted after training, with the averaged weights in place; nothing for most families."""

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.trained, self.config.optimizer, self.config.trainer.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model"] = {**self.metadata, "step": str(self.trainer.global_step)}
