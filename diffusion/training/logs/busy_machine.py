"""One line where the first minute of training is far slower than the machine can be: others use it."""

from __future__ import annotations

import itertools
import os
import sys
import time

from lightning.pytorch import LightningModule, Trainer

from ..callbacks import StepCallback

FAR = 2.0  # times as long as the quickest steps take


class BusyMachine(StepCallback):
    """After the first minute on a CPU, says that other processes slow the steps down, if they do.

    The measure of what the machine can do are the quickest steps of that minute: a step is never too quick.

    Args:
        images_per_step: Images per step, over all devices.
    """

    WARM_UP, MINUTE = 2, 60.0  # steps that are not counted (compiling, first use of memory), and seconds that are

    def __init__(self, images_per_step: int):
        self.images_per_step = images_per_step
        self._first = 0
        self._times: list[float] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first = trainer.global_step
        watched = trainer.is_global_zero and pl_module.device.type == "cpu" and hasattr(os, "getloadavg")
        self._times = [] if watched else None

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._times is None or trainer.global_step < self._first + self.WARM_UP:  # reported already, or too early
            return
        self._times.append(time.perf_counter())
        if self._times[-1] - self._times[0] >= self.MINUTE:
            line = reason(self._times, self.images_per_step, os.getloadavg()[0], os.cpu_count() or 1)
            self._times = None
            if line is not None:
                print(line, file=sys.stderr, flush=True)


def reason(times: list[float], images_per_step: int, load: float, cores: int) -> str | None:
    """The line, or None where the steps are as quick as they can be, or nobody else is to blame.

    Args:
        times: Seconds at which steps were done, at least two.
        images_per_step: Images per step.
        load: Processes that ran or waited for a core, the average of the last minute.
        cores: Of the machine.
    """
    quickest = min(after - before for before, after in itertools.pairwise(times))
    usual = (times[-1] - times[0]) / (len(times) - 1)
    if usual < FAR * quickest or load <= cores:
        return None
    return (
        f"slow: {images_per_step / usual:.3g} images/s in the first minute, {images_per_step / quickest:.3g} in the "
        f"quickest step; other processes use this machine (load {load:.1f} on {cores} cores)"
    )
