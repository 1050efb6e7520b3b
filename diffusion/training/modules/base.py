"""The common part of the Lightning modules: what is optimised, averaged and compiled, and what follows training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from ...config import Config
from ...models import factors
from ...models.build import Data
from ...numerics import random
from ...numerics.placement import for_numbers
from ..distributed.shards import is_sharded, shard
from ..ema import AVERAGE_KEY
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
    def where(self) -> torch.device:
        """The device of the data and of all numbers (`numerics.placement`)."""
        return for_numbers(self.device)

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
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def number(self, value: int) -> int | Tensor:
        """A whole number, as a graph takes it: on the module's device, and written there, not copied from the host."""
        return torch.full((), value, dtype=torch.long, device=self.where) if self.compiles else value

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
        """Refuse data that `finish` could not be done with, before training."""

    fits_after_training = False  # whether `finish` does anything

    def finish(self, data: Data, device: torch.device) -> None:
        """Fit what is fitted after training, with the averaged weights in place; nothing for most families."""

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.trained, self.config.optimizer, self.config.trainer.steps)

    def kept(self) -> dict[str, Tensor]:
        """What of the model's weights its file holds: all, or the factors on those of another model's."""
        state = self.model.state_dict()
        if factors.KEY not in self.metadata:
            return state
        return factors.for_file({name: state[name] for name in factors.learned_names(self.model)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model"] = {**self.metadata, "step": str(self.trainer.global_step)}
        for state, prefix in self._states(checkpoint):
            for name in self._base():
                state.pop(prefix + name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if factors.KEY in self.metadata:
            factors.require_same_base(self.metadata, checkpoint.get("model", {}))
        for state, prefix in self._states(checkpoint):
            for name, value in self._base().items():
                state.setdefault(prefix + name, value)

    def _base(self) -> dict[str, Tensor]:
        """The weights that checkpoints do without: those of the model that factors are trained on."""
        if factors.KEY not in self.metadata:
            return {}
        learned = set(factors.learned_names(self.model))
        return {name: value for name, value in self.model.state_dict().items() if name not in learned}

    def _states(self, checkpoint: dict[str, Any]) -> list[tuple[dict[str, Tensor], str]]:
        """The weights and the average in a checkpoint, with what the names of the model's begin with."""
        averages = checkpoint.get(AVERAGE_KEY, {}).get("averages", [])
        return [(checkpoint["state_dict"], f"{self.averaged}."), *((state, "") for state in averages)]
