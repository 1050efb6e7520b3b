"""Training batches as a stateless function of the step, with the share of each process.

A run that resumes at step k reads batch k and continues as if it had never stopped; Lightning's own sampler, which
would restart its epoch, is not used.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..config import Config
from ..data import augment, batch_indices, global_positions
from ..data.files.mapped_rows import MappedRows
from ..errors import UserError
from ..models.build import Data
from ..models.conditions import Conditions
from ..numerics.placement import for_numbers
from ..numerics.random import state_seed

# The draws of toy data that validation is measured on, far from the training draws.
_TOY_VALIDATION = 2048
_TOY_VALIDATION_KEY = 1 << 30

Batch = dict[str, Any]


def conditions_of(data: Data) -> Conditions | None:
    """The conditions of the rows of a run's data; None where there are none but classes."""
    return Conditions(data.facts.parts, data.split) if data.facts.parts and data.split is not None else None


class TrainingBatches(IterableDataset):
    """The batches of one process from part `start` on, for ever.

    A step's global batch is cut into accumulate x world_size equal slices; part k of a process is the slice
    (k mod accumulate) x world_size + rank of step k // accumulate.

    Args:
        data: The data of the run.
        config: The configuration of the run.
        start: The first part.
        rank: The number of this process.
        world_size: The number of processes.
        device: Where training images and labels are held, indexed and mirrored; None: where they are.
    """

    def __init__(
        self,
        data: Data,
        config: Config,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ):
        self.device = device
        split = data.split
        self._held = None if split is None else split.train.to(device)
        labels = None if split is None else split.train_labels
        self._labels = None if labels is None else labels.to(device)
        self._conditions = conditions_of(data)
        self._positions: dict[int, Tensor] = {}
        self.data = data
        self.config = config
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def part(self, k: int) -> Batch:
        """Part k of this process: data, labels, positions in the global batch, step and part of the step."""
        trainer, seed = self.config.trainer, self.config.seed
        step, micro = divmod(k, trainer.accumulate)
        slice_, slices = micro * self.world_size + self.rank, trainer.accumulate * self.world_size
        if slice_ not in self._positions:
            self._positions[slice_] = global_positions(trainer.batch_size, slice_, slices).to(self.device)
        positions = self._positions[slice_]
        batch: Batch = {"positions": positions, "step": step, "slice": slice_}
        if self.data.toy is not None:
            points = self.data.toy.draw(trainer.batch_size, seed=state_seed(seed, step))
            return batch | {"x": points[positions]}
        split = self.data.split
        assert split is not None
        assert self._held is not None
        rows = batch_indices(seed, step, trainer.batch_size, len(self._held), slice_, slices, self.device)
        flip = split.flip if self.config.data.flip is None else self.config.data.flip
        batch["x"] = augment(self._held[rows], seed, step, positions, flip)
        if self._labels is not None:
            batch["labels"] = self._labels[rows]
        if self._conditions is not None:
            batch["condition"] = self._conditions.of("train", rows, batch["x"], seed, positions, step, flip)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        k, stride = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        while True:
            yield self.part(k)
            k += stride


class ValidationBatches(Dataset):
    """The validation data of one process; each sample occurs once over all processes, with its index."""

    def __init__(self, data: Data, batch_size: int, rank: int = 0, world_size: int = 1):
        self.labels: Tensor | None = None
        self.conditions = conditions_of(data)
        if data.toy is not None:
            self.x: Tensor | MappedRows = data.toy.draw(_TOY_VALIDATION, seed=_TOY_VALIDATION_KEY)
        else:
            assert data.split is not None
            self.x, self.labels = data.split.validation, data.split.validation_labels
        least, most = len(self.x) // world_size, -(-len(self.x) // world_size)
        if len(self.x) and not least:
            raise UserError(f"data: {len(self.x)} validation images are fewer than the {world_size} processes")
        # Each process has as many batches as the others, none of them empty: buffers and sharded weights are exchanged
        # in each, and a process with one more would wait for ever.
        batches = min(-(-most // batch_size), least) if len(self.x) else 0
        self.rows = torch.arange(len(self.x))[rank::world_size].tensor_split(batches) if batches else ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        rows = self.rows[i]
        batch: Batch = {"x": self.x[rows], "positions": rows}
        batch |= {} if self.labels is None else {"labels": self.labels[rows]}
        if self.conditions is None:
            return batch
        return batch | {"condition": self.conditions.of("validation", rows, batch["x"], 0, rows)}


def _leave_signals_to_parent(worker: int) -> None:
    """A terminal's Ctrl-C and torchrun signal the whole process group; a loader that dies would take the step with it.

    A loader ends with its parent, which it looks after itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class DataModule(L.LightningDataModule):
    """The loaders of a run; they ask the trainer for the step and for this process's place.

    Args:
        data: The data of the run.
        config: The configuration of the run.
    """

    def __init__(self, data: Data, config: Config):
        super().__init__()
        self.data = data
        self.config = config
        self._positions: dict[int, Tensor] = {}

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        start = trainer.global_step * self.config.trainer.accumulate
        device = for_numbers(trainer.strategy.root_device) if self.config.data.place == "device" else None
        batches = TrainingBatches(self.data, self.config, start, trainer.global_rank, trainer.world_size, device)
        workers = self.config.trainer.workers
        # Page-locked memory is what a GPU copies from while it computes, and without the host waiting.
        pinned = trainer.strategy.root_device.type == "cuda" and device is None
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            pin_memory=pinned,
            worker_init_fn=_leave_signals_to_parent,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As Lightning does, with the positions of a slice, which are the same at each step, copied once."""
        device = for_numbers(device)
        if "slice" in batch:
            if batch["slice"] not in self._positions:
                self._positions[batch["slice"]] = batch["positions"].to(device)
            batch = {**batch, "positions": self._positions[batch["slice"]]}
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        size = self.config.evaluation.batch_size
        return DataLoader(
            ValidationBatches(self.data, size, trainer.global_rank, trainer.world_size), batch_size=None, shuffle=False
        )
