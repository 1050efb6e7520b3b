"""The line that says that other processes slow training down."""

import os
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
from tiny_training import LIGHTNING_WARNINGS, Endless, TinyModule
from torch.utils.data import DataLoader

from diffusion.training.logs import busy_machine
from diffusion.training.logs.busy_machine import BusyMachine, reason

pytestmark = LIGHTNING_WARNINGS


def test_steps_far_slower_than_the_quickest_are_blamed_on_the_load():
    steady, halting = [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 4.0, 9.0]
    assert reason(steady, 60, load=8.0, cores=2) is None
    assert reason(halting, 60, load=1.5, cores=2) is None  # nobody else runs
    line = reason(halting, 60, load=8.0, cores=2)
    assert line is not None
    assert "20 images/s" in line
    assert "60 in the quickest" in line
    assert "load 8.0 on 2 cores" in line


@pytest.mark.parametrize(("load", "lines"), [(9.0 * (os.cpu_count() or 1), 1), (0.0, 0)])
def test_a_training_says_it_once(monkeypatch, capsys, load, lines):
    class Clock(L.Callback):
        now = 0.0

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.now += 10.0 if trainer.global_step > 8 else 1.0

    clock = Clock()
    monkeypatch.setattr(busy_machine, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    callbacks = [clock, BusyMachine(images_per_step=8)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=16, callbacks=callbacks, **quiet)
    trainer.fit(TinyModule(), DataLoader(Endless(), batch_size=None), DataLoader([0.0]))
    assert capsys.readouterr().err.count("slow: ") == lines
