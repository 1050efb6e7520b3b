"""Checkpoints that survive a kill, are verified before use, and cannot execute code.

Writing is atomic (`storage.atomic`). A `torch.save` file is a zip archive with a CRC-32 of every record, which
`torch.load` does not check (it silently loads most single-bit flips), so the archive is tested first, and if it is
damaged the previous checkpoint is used. Loading is `weights_only=True` always: tensors and plain types, nothing that
unpickles into a call. Weights that are not finite are never written: the last checkpoint stays the last *good* one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ..errors import UserError
from ..storage import atomic, full_disk
from ..storage.checkpoint_files import leaves, read_checkpoint

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin that writes atomically and loads with checks: `Trainer(plugins=[AtomicCheckpointIO()])`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            UserError: A weight, average or optimiser state is not finite, or the file cannot be written (a full disk);
                the former file stays.
        """
        for key in ("state_dict", "weight_average", "profile_averages", "optimizer_states"):
            for name, leaf in leaves(checkpoint.get(key), key):
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                    raise UserError(
                        f"{path}: not written, '{name}' is not finite at step {checkpoint.get('global_step')}: "
                        "training has diverged. Go back to the last checkpoint, with a lower optimizer.lr."
                    )
        try:
            with atomic.writer(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # PyTorch's writer makes a RuntimeError of a failed write
            free = shutil.disk_usage(Path(path).parent).free / 1e6
            former = "; the former checkpoint is whole" if Path(path).is_file() else ""
            raise UserError(
                f"{path}: cannot be written ({full_disk.reason(error)}; {free:,.0f} MB free){former}. "
                f"{full_disk.CONTINUE}"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read and check a checkpoint (`weights_only` is always on); for a damaged one the one before it.

        Raises:
            UserError: Neither it nor an earlier one in its folder can be read.
        """
        path = Path(path)
        try:
            return read_checkpoint(path, map_location)
        except UserError as error:
            for other in _earlier(path):
                try:
                    checkpoint = read_checkpoint(other, map_location)
                except UserError:
                    continue
                rank_zero_only(_tell)(f"warning: {error}\nwarning: going on from {other} in its place")
                return checkpoint
            raise

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file at `path`, if there is one."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` of a run.

    `last.ckpt` is written every `every` optimiser steps, before each validation, at a stop and at the end of training.
    It is written again after a validation, so that the best score so far is in it. Lightning calls callbacks of this
    kind after all others: the average has been updated and the raw weights are in place.

    A validation interrupted by a stop or a kill is repeated when the run resumes, before its first step.

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
        self._validated_step = -1
        self._max_steps: int | None = None

    @property
    def last(self) -> Path:
        """The path of the latest checkpoint."""
        return self.folder / LAST

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.sweep(self.folder)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] >= trainer.max_steps:
            # A trainer with no step to go does not start at all, and a validation may be missing.
            self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, checkpoint["global_step"] + 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        self._saved_step = trainer.global_step  # what a resumed run has loaded need not be written again
        if validation_is_due(trainer) and self._validated_step != trainer.global_step:
            trainer.validating = True
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # from its first batch, and not after those of the validation before
            loop.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        ends = trainer.should_stop or step == trainer.max_steps
        if step != self._saved_step and (ends or step % self.every == 0 or validation_is_due(trainer)):
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validated_step = trainer.global_step
        if self.monitor is not None and self.monitor in trainer.callback_metrics:
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
        return {"best_score": self.best_score, "validated_step": self._validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = float(state_dict["best_score"])
        self._validated_step = int(state_dict.get("validated_step", -1))

    def _save_last(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.last, weights_only=False)
        self._saved_step = trainer.global_step
        if self.keep_last > 1 and trainer.is_global_zero:
            atomic.link_or_copy(self.last, self.folder / f"step-{trainer.global_step:08d}.ckpt")
            # By age and not by step: after going back to an earlier step the later ones are the old ones.
            by_age = sorted(self.folder.glob("step-*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
            for path in by_age[: -self.keep_last]:
                path.unlink()


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation belongs to the present step: Lightning's own rule, at the end of a step."""
    every = trainer.val_check_batch
    if not trainer.enable_validation or not trainer.global_step or every is None:
        return False
    return trainer.global_step * trainer.accumulate_grad_batches % every == 0


def _earlier(path: Path) -> list[Path]:
    """The other checkpoints in a folder, newest first, the best one last."""
    kept = sorted(path.parent.glob("step-*.ckpt"), key=lambda other: other.stat().st_mtime_ns, reverse=True)
    return [other for other in (*kept, path.with_name(BEST)) if other != path and other.is_file()]


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
