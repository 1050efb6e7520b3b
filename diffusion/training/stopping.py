"""A signal ends training at the next step boundary, with a checkpoint and an exit code of its own.

A handler that saves, or talks to other processes, runs in the middle of anything and hangs a distributed job. Here it
only sets a flag. After each step the processes agree on it (one of them having been signalled is enough), training
stops, the `Checkpoints` callback saves, and the command exits with 75 (`EX_TEMPFAIL`: try again) after SIGTERM or 130
after SIGINT; a scheduler that saw 0 would believe the run finished.

A validation can take longer than a scheduler waits. It is left after its present batch: a checkpoint has been written
before it, and the run that continues from there begins with the validation.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class ValidationStopped(Exception):
    """Leaves a validation, in all processes at the same batch."""


class GracefulStop(Callback):
    """Stops training after the present step on SIGTERM or SIGINT; a second SIGINT interrupts at once.

        with graceful_stop.caught():
            trainer.fit(...)
        sys.exit(graceful_stop.exit_code)

    `exit_code` is 75 or 130 if a signal cut training short, else 0.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._limit_val_batches: int | float | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Run `trainer.fit` in a block that ends where a stop leaves a validation."""
        try:
            yield
        except ValidationStopped:
            assert self.exit_code

    @property
    def requested(self) -> bool:
        """Whether this process has been signalled."""
        return self._received is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in on_fit_start: Lightning installs its own handlers after that.
        self.exit_code, self._received = 0, None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in EXIT_CODES}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # within a step: a checkpoint here would resume Lightning's count of parts in its middle
        if self.exit_code or not trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            return
        if trainer.global_step == trainer.max_steps:
            return  # this was the last step: training is complete, and says so
        self._decide(trainer)
        trainer.should_stop = True
        # Lightning validates when it is told to stop; the time before the scheduler's SIGKILL is not for that.
        self._limit_val_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # All processes have the same number of batches (`data_module`): none waits alone.
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            self._decide(trainer)
            raise ValidationStopped

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore(trainer)

    def _decide(self, trainer: Trainer) -> None:
        # A process that was not signalled itself learns of the stop here; the scheduler's signal is SIGTERM.
        received = signal.Signals(self._received or signal.SIGTERM)
        self.exit_code = EXIT_CODES[received]
        rank_zero_info(f"{received.name}: stopping after step {trainer.global_step}.")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _restore(self, trainer: Trainer) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None


@contextmanager
def exits_on_sigterm() -> Iterator[None]:
    """Run a block that SIGTERM ends at once with exit code 75, for what the same command begins anew: measuring."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_CODES[signal.SIGTERM])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class KillAfter(Callback):
    """Kills its own process (SIGKILL) when so many steps are done, after whatever happens at that step.

    Args:
        step: The number of steps.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
