"""The cost of a training run: images seen, seconds, and hardware.

The seconds are those of the steps, without loading data, validation, pictures and checkpoints. A resumed run adds to
what its checkpoint records, so that steps lost with a killed process count once, as they do in the model.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from ..devices import device_name
from ..storage import atomic, runs

_KEY = "training"
_MARKS = 100  # steps of a GPU whose time is read at once


class TrainingRecord(Callback):
    """Counts the cost of the steps; it must come before all callbacks that act at the end of a step.

    Args:
        images_per_step: Images of one update, over all devices.
        device: Where this process computes.
        processes: How many there are. The CPU seconds are those of this process, so of several they are not known.
    """

    def __init__(self, images_per_step: int, device: torch.device, processes: int = 1):
        self.images_per_step = images_per_step
        self.device, self.processes = device, processes
        self.images = 0
        self.seconds: float | None = 0.0
        self.cpu_seconds: float | None = 0.0 if processes == 1 else None
        self.hardware: list[str] = []
        self._since = (0.0, 0.0)
        self._events: list[tuple[Any, Any]] = []  # of a GPU: what begins and ends the steps whose time is not read yet

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._since = time.perf_counter(), time.process_time()
        if self.device.type == "cuda":
            self._events.append((_mark(), None))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._here not in self.hardware:
            self.hardware.append(self._here)
        since_wall, since_cpu = self._since
        if self.cpu_seconds is not None:
            self.cpu_seconds += time.process_time() - since_cpu
        if self._events:
            self._events[-1] = (self._events[-1][0], _mark())
            if len(self._events) >= _MARKS:
                self._read()
        elif self.seconds is not None:
            self.seconds += time.perf_counter() - since_wall
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.images += self.images_per_step

    def _read(self) -> None:
        """Add the seconds of the steps whose marks are not read yet."""
        marks, self._events = [pair for pair in self._events if pair[1] is not None], []
        if marks and self.seconds is not None:
            marks[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in marks) / 1000.0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_KEY] = self.to_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get(_KEY)
        if found is None:  # of a version that did not record it: what came before is not known
            self.images = checkpoint["global_step"] * self.images_per_step
            self.seconds = self.cpu_seconds = None
            return
        self.images, self.hardware = int(found["images"]), list(found["hardware"])
        for name in ("seconds", "cpu_seconds"):
            known = getattr(self, name) is not None and found[name] is not None
            setattr(self, name, float(found[name]) if known else None)

    @cached_property
    def _here(self) -> str:
        """Such as `cpu, 2 threads`."""
        threads = torch.get_num_threads()
        plural = f"{threads} thread{'s' if threads > 1 else ''}"
        shared = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{device_name(self.device)}, {plural}{shared}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None where one is not known."""
        self._read()
        return {
            "images": self.images,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "hardware": list(self.hardware),
        }

    def write(self, run: Path) -> None:
        """Write training.json to the run folder."""
        atomic.write_text(run / runs.TRAINING, json.dumps(self.to_dict()) + "\n")


def _mark() -> Any:
    """Now, in the order of what the GPU was given to do; the host does not wait for it."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
