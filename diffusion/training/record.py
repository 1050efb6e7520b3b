"""What a training run cost, recorded by training itself: images seen, seconds, and on what.

The seconds are those of the steps: the data of a batch, validation, pictures and checkpoints are not in them. A run
that goes on adds to what its checkpoint says, so that steps lost with a killed process count as they do in the model,
once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from ..devices import device_name
from ..storage import atomic, runs

_KEY = "training"


class TrainingRecord(Callback):
    """Counts what the steps cost; its place is before all callbacks that do something at the end of a step.

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

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._since = self._now()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (where := self._where()) not in self.hardware:
            self.hardware.append(where)
        (since_wall, since_cpu), (wall, cpu) = self._since, self._now()
        if self.seconds is not None:
            self.seconds += wall - since_wall
        if self.cpu_seconds is not None:
            self.cpu_seconds += cpu - since_cpu
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.images += self.images_per_step

    def _now(self) -> tuple[float, float]:
        """Wall and CPU seconds, when all that the device was given to do is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter(), time.process_time()

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

    def _where(self) -> str:
        """Such as `cpu, 2 threads`."""
        threads = torch.get_num_threads()
        plural = f"{threads} thread{'s' if threads > 1 else ''}"
        shared = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{device_name(self.device)}, {plural}{shared}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None where one is not known."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "hardware": list(self.hardware),
        }

    def write(self, run: Path) -> None:
        """Write training.json to the run folder."""
        atomic.write_text(run / runs.TRAINING, json.dumps(self.to_dict()) + "\n")
