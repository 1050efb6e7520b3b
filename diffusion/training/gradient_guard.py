"""Gradient clipping, and a guard against gradients that are not finite.

Clipping by the total norm turns one NaN into NaN everywhere, and zeroing NaNs hides them while weight decay and
momentum go on. Here the norm is measured once, before the optimiser sees the gradients. Where it is not finite the
step is dropped: weights, moments, step count and weight decay are left alone. Dropped steps are counted and logged,
with the noise levels at which the loss failed, and too many in a row end the run with a message instead of a NaN model.

On a GPU whether a step is dropped is decided there, by the optimiser's fused kernel, which takes a flag (`found_inf`);
the host reads the flags of many steps at once, and does not wait for each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from ..errors import UserError
from .distributed.shards import plain

# Losses and their log-SNR, of the parts of a step.
Losses = list[tuple[Tensor, Tensor]]


class TrainingDivergedError(UserError):
    """The gradient was not finite for too many steps in a row."""


class GradientGuard(Callback):
    """Clips the gradient to a total norm, drops steps with a non-finite one, logs the norm as `train/grad_norm`.

    The norm is that of the complete gradient of an optimiser step: after accumulation and after the sum over processes,
    so that every process decides alike. The logged norm is the one before clipping. Leave Lightning's
    own `gradient_clip_val` unset. A loss that is not finite drops the step too, though its gradient may be finite.

    A dropped step is reported on stderr and has its own line of metrics, whatever `log_every` is: `dropped/steps`,
    how many there have been, and the least and largest log-SNR of the data whose loss was not finite.

    Args:
        clip: Largest total norm; None for no clipping.
        patience: How many steps in a row may be dropped; one more raises.
        last_checkpoint: The path that the error message points to, if it exists by then.
        step_losses: The losses of the data of this process in the present step, and their log-SNR, part by part.
        read_every: Steps after which the host reads which of them were dropped. More than 1 needs the fused AdamW;
            with another optimiser every step is read.

    Raises:
        TrainingDivergedError: From `fit`, when more than `patience` steps in a row had to be dropped.
    """

    def __init__(
        self,
        clip: float | int | None = 1.0,
        patience: int = 10,
        last_checkpoint: str | Path | None = None,
        step_losses: Callable[[], Losses] = list,
        read_every: int = 1,
    ) -> None:
        if clip is not None and clip <= 0:
            raise UserError(f"optimizer.gradient_clip: {clip} found; a positive norm, or null for none, is accepted.")
        self.clip = clip
        self.patience = patience
        self.last_checkpoint = None if last_checkpoint is None else Path(last_checkpoint)
        self.step_losses = step_losses
        self.read_every = read_every
        self.dropped = 0
        self.dropped_in_a_row = 0
        self._unread: list[tuple[int, Tensor, Losses]] = []  # step, whether it was dropped, its losses
        self._trainer: Trainer | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # An overflow in the loss alone (x^2 of a large x) leaves its gradient finite. Made NaN here, it is seen below,
        # by every process alike, and without a wait for the device.
        is_finite = torch.isfinite(loss.detach())
        loss.register_hook(lambda gradient: torch.where(is_finite, gradient, torch.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = plain(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        step, failed = trainer.global_step, ~torch.isfinite(norm)
        self._trainer = trainer
        self._unread.append((step, failed, self.step_losses()))
        due = (step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if self.read_every > 1 and _takes_flag(optimizer, parameters):
            optimizer.found_inf = failed.to(torch.float32)  # type: ignore[attr-defined]
            kept = True
        else:
            kept = not bool(failed)
        if not kept:
            for parameter in parameters:
                parameter.grad = None
        elif self.clip is not None:
            clip_grads_with_norm_(parameters, self.clip, norm)
        if due or not kept or len(self._unread) >= self.read_every:
            self._read()
        if due:
            pl_module.log("train/grad_norm", norm)
            pl_module.log("train/dropped_steps", float(self.dropped))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {"dropped": self.dropped, "dropped_in_a_row": self.dropped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.dropped = int(state_dict["dropped"])
        self.dropped_in_a_row = int(state_dict["dropped_in_a_row"])

    def _read(self) -> None:
        """Count the steps that were dropped since the last time, and report each: one wait for the device.

        Raises:
            TrainingDivergedError: For too many in a row.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        flags = torch.stack([failed for _, failed, _ in unread]).tolist()
        for (step, _, losses), failed in zip(unread, flags, strict=True):
            self.dropped_in_a_row = self.dropped_in_a_row + 1 if failed else 0
            if failed:
                self.dropped += 1
                self._tell(step, [v for loss, log_snr in losses for v in log_snr[~loss.isfinite()].tolist()])
            if self.dropped_in_a_row > self.patience:
                raise TrainingDivergedError(self._message(step))

    def _tell(self, step: int, levels: list[float]) -> None:
        trainer = self._trainer
        assert trainer is not None
        figures = {"dropped/steps": float(self.dropped)}
        where = ""
        if levels:
            low, high = min(levels), max(levels)
            figures |= {"dropped/log_snr_low": low, "dropped/log_snr_high": high}
            where = f"; the loss of {len(levels)} data failed, at log-SNR {low:.2f} to {high:.2f}"
        if levels or trainer.is_global_zero:
            print(f"warning: step {step} dropped, its gradient is not finite{where}", file=sys.stderr, flush=True)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)

    def _message(self, step: int) -> str:
        if self.last_checkpoint is not None and self.last_checkpoint.is_file():
            good = f"The last good checkpoint is {self.last_checkpoint}."
        else:
            good = "No checkpoint had been written."
        return (
            f"training diverged: the gradient was not finite in {self.dropped_in_a_row} steps in a row, up to step "
            f"{step}. {good} Try a lower optimizer.lr, a longer warmup or trainer.precision=32."
        )


def _takes_flag(optimizer: Optimizer, parameters: list[Tensor]) -> bool:
    """Whether the optimiser's step can be made to change nothing on the device."""
    fused = isinstance(optimizer, torch.optim.Adam) and all(group["fused"] for group in optimizer.param_groups)
    return fused and not any(isinstance(parameter, DTensor) for parameter in parameters)
