"""What the Lightning modules of all families are to a run: what is optimised, averaged, compiled; and what follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import nn

from ..config import Config
from ..experiment import Data
from .optimization import make_optimizer
from .shards import is_sharded, shard


class ModelModule(L.LightningModule):
    """A model in training.

    `averaged` names the submodule that the model file holds: its weights are optimised and averaged.

    Args:
        config: The configuration of the run.
        metadata: What makes the checkpoint a model by itself (see `model.load`).
    """

    averaged: ClassVar[str]

    def __init__(self, config: Config, metadata: Mapping[str, str]):
        super().__init__()
        self.config = config
        self.metadata = dict(metadata)

    @property
    def model(self) -> nn.Module:
        """The submodule that the model file holds."""
        return self.get_submodule(self.averaged)

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The parts that are worth compiling."""

    def configure_model(self) -> None:
        """Shard the networks, where the strategy has a mesh of processes; Lightning calls it once they have met."""
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self.networks, self.model, self.device_mesh["data_parallel"])

    def failed_log_snr(self) -> list[float]:
        """The log-SNR of each datum of this process whose loss in this step is not finite; none for most families."""
        return []

    def check_data(self, data: Data) -> None:
        """Refuse data that `finish` could not be done with, before training.

        Raises:
            UserError: For such data.
        """

    fits_after_training = False  # whether `finish` does anything

    def finish(self, data: Data, device: torch.device) -> None:
        """Fit what is fitted after training, with the averaged weights in place; nothing for most families."""

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.model.parameters(), self.config.optimizer, self.config.trainer.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model"] = {**self.metadata, "step": str(self.trainer.global_step)}
