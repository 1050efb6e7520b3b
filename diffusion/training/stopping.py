"""A signal ends training after the current step, with a checkpoint and a specific exit code.

A handler that saves, or talks to other processes, runs in the middle of anything and hangs a distributed job. Here it
only sets a flag. After each step the processes agree on it (one of them having been signalled is enough), training
stops, the `Checkpoints` callback saves, and the command exits with 75 (`EX_TEMPFAIL`: try again) after SIGTERM or 130
after SIGINT; a scheduler that saw 0 would believe the run finished.

A validation can take longer than a scheduler waits. It is abandoned after its current batch: a checkpoint was written
before it, and the resumed run starts with the validation.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ..processes import launched
from ..storage import run_status

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class ValidationStopped(Exception):
    """Ends a validation, at the same batch in all processes."""


class GracefulStop(Callback):
    """Stops training after the present step on SIGTERM or SIGINT; a second SIGINT interrupts at once.

        with graceful_stop.caught():
            trainer.fit(...)
        sys.exit(graceful_stop.exit_code)

    Attributes:
        exit_code: 75 or 130 if a signal cut training short, else 0.
        late_code: The same for a signal during or after the last step, when there was nothing left to cut short.
    """

    def __init__(self) -> None:
        self.exit_code = self.late_code = 0
        self._received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._limit_val_batches: int | float | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Run `trainer.fit` in a block that ends where a stop leaves a validation.

        Of several processes one ends before the others, and torchrun then sends SIGTERM to those: they are on their
        way out, and go on to ignore it.
        """
        try:
            yield
        except ValidationStopped:
            assert self.exit_code
        except SystemExit:
            if self._received == signal.SIGINT:  # what Lightning makes of a second one
                raise KeyboardInterrupt from None
            raise
        finally:
            self.late_code = 0 if self.exit_code else self.late_code or self._own_code()
            leaving = self.exit_code and launched().count > 1
            for number, handler in self._previous.items():
                signal.signal(number, signal.SIG_IGN if leaving else handler)
            self._previous = {}

    def requested(self) -> bool:
        """Whether this process has received a signal."""
        return self._received is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's handler broadcasts within itself, and hangs where one process alone is signalled; that for SLURM
        # writes a checkpoint of its own. `caught` puts back what was there before.
        connector = trainer._signal_connector
        assert callable(connector.register_signal_handlers)
        connector.register_signal_handlers = lambda: None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # From here on: what comes before (finding each other, data) may wait for other processes, and dies as usual.
        self.exit_code = self.late_code = 0
        self._received = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in EXIT_CODES}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # within a step: a checkpoint here would resume Lightning's count of parts in its middle
        if self.exit_code or trainer.global_step == trainer.max_steps:
            return  # after the last step training is complete, and says so
        self.exit_code = self._agreed(trainer)
        if self.exit_code:
            trainer.should_stop = True
            # Lightning validates when it is to stop; the time before the scheduler's SIGKILL is not for that.
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
        self.exit_code = self._agreed(trainer)
        if self.exit_code:
            raise ValidationStopped

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.exit_code:
            self.late_code = self._agreed(trainer)
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore(trainer)

    def _agreed(self, trainer: Trainer) -> int:
        """The exit code of the signals that any of the processes has received (the greatest), 0 where there is none."""
        code = self._own_code()
        if trainer.world_size > 1:
            highest = torch.tensor(code, device=trainer.strategy.root_device)
            dist.all_reduce(highest, op=dist.ReduceOp.MAX)
            code = int(highest)
        if code:
            name = next(number.name for number, own in EXIT_CODES.items() if own == code)
            rank_zero_info(f"{name}: stopping after step {trainer.global_step}.")
        return code

    def _own_code(self) -> int:
        return 0 if self._received is None else EXIT_CODES[signal.Signals(self._received)]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _restore(self, trainer: Trainer) -> None:
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None


class _Signalled(SystemExit):
    """SIGTERM has come, and nothing else."""


@contextmanager
def exits_on_sigterm(run: Path) -> Iterator[None]:
    """Run a block that SIGTERM ends at once with exit code 75, for what the same command begins anew: measuring.

    Args:
        run: The run folder, in which a stop is recorded, that by SIGINT too.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise _Signalled(EXIT_CODES[signal.SIGTERM])

    in_main_thread = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGTERM, leave) if in_main_thread else None
    try:
        yield
    except (_Signalled, KeyboardInterrupt) as stop:
        number = signal.SIGTERM if isinstance(stop, _Signalled) else signal.SIGINT
        run_status.record(run, EXIT_CODES[number])
        raise
    finally:
        if in_main_thread:
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
