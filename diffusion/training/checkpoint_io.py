"""Checkpoints that survive a kill, are checked before they are believed, and cannot run code.

Writing is atomic (`diffusion.atomic`). A `torch.save` file is a zip archive with a CRC-32 of every record, which
`torch.load` does not look at (it loads most single-bit flips in silence), so the archive is tested first. Loading is
`weights_only=True` always: tensors and plain types, nothing that unpickles into a call. Weights that are not finite are
never written: the last checkpoint stays the last *good* one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from diffusion import atomic
from diffusion.checkpoint_files import read_checkpoint
from diffusion.errors import UserError

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin that writes atomically and loads with checks: `Trainer(plugins=[AtomicCheckpointIO()])`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            UserError: A weight, average or optimiser state is not finite; the former file stays.
        """
        for key in ("state_dict", "weight_average", "optimizer_states"):
            for name, tensor in _named_tensors(checkpoint.get(key), key):
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise UserError(
                        f"{path}: not written, '{name}' is not finite at step {checkpoint.get('global_step')}: "
                        "training has diverged. Go back to the last checkpoint, with a lower optimizer.lr."
                    )
        with atomic.writer(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read and check a checkpoint (see `read_checkpoint`; `weights_only` is always on)."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file at `path`, if there is one."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` of a run.

    `last.ckpt` is written every `every` optimiser steps, at a stop and at the end of training. It is written again
    after a validation at the same step, so that the best score so far is in it. Lightning calls callbacks of this kind
    after all others: the average has been updated and the raw weights are in place.

    Args:
        folder: Where the checkpoints go.
        every: Optimiser steps between two checkpoints.
        keep_last: How many of the latest to keep. Beyond 1 they are also named `step-<step>.ckpt`.
        monitor: The validation metric, lower is better, that decides on `best.ckpt`; None for no `best.ckpt`.
            It has to agree between processes (`self.log(..., sync_dist=True)`).
    """

    def __init__(
        self, folder: str | Path, every: int, keep_last: int = 1, monitor: str | None = "validation/loss"
    ) -> None:
        if every < 1 or keep_last < 1:
            raise UserError(f"trainer.checkpoint_every, keep_last: {every}, {keep_last} found; at least 1 is accepted.")
        self.folder = Path(folder)
        self.every = every
        self.keep_last = keep_last
        self.monitor = monitor
        self.best_score = float("inf")
        self._saved_step = -1

    @property
    def last(self) -> Path:
        """The path of the latest checkpoint."""
        return self.folder / LAST

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.sweep(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step  # what a resumed run has loaded need not be written again

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        ends = trainer.should_stop or step == trainer.max_steps
        if step != self._saved_step and (ends or step % self.every == 0):
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if score < self.best_score:  # false for NaN
            self.best_score = score
            trainer.save_checkpoint(self.folder / BEST, weights_only=False)
        if self._saved_step == trainer.global_step:
            self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = float(state_dict["best_score"])

    def _save_last(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.last, weights_only=False)
        self._saved_step = trainer.global_step
        if self.keep_last > 1 and trainer.is_global_zero:
            atomic.link_or_copy(self.last, self.folder / f"step-{trainer.global_step:08d}.ckpt")
            # By age and not by step: after going back to an earlier step the later ones are the old ones.
            by_age = sorted(self.folder.glob("step-*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
            for path in by_age[: -self.keep_last]:
                path.unlink()


def _named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _named_tensors(item, f"{name}.{index}")
