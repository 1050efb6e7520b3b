"""What training cost: of the steps that made the model, resumed parts added, and unknown where it was not recorded."""

import json
import os
import signal
import time

import lightning.pytorch as L
import pytest
import torch
from tiny_configs import autoencoder_config, digits_config, toy_config
from tiny_training import LIGHTNING_WARNINGS

from diffusion.commands.subjects import load_subject
from diffusion.storage import runs
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.training.fit import fit
from diffusion.training.modules.denoiser import DenoiserModule
from diffusion.training.record import TrainingRecord

pytestmark = LIGHTNING_WARNINGS

PAUSE = 0.05


def record(run):
    return json.loads((run / runs.TRAINING).read_text())


@pytest.fixture
def slow(monkeypatch):
    """Steps that wait, so that wall seconds are at least so many, and CPU seconds need not be."""
    original = DenoiserModule.training_step

    def training_step(self, batch, batch_idx):
        time.sleep(PAUSE)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "training_step", training_step)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_images_and_seconds_of_the_steps(tmp_path, slow, accumulate):
    start = time.perf_counter()
    run = fit(toy_config(tmp_path, f"trainer.accumulate={accumulate}")).run
    found = record(run)
    assert found["images"] == 6 * 8
    assert 6 * accumulate * PAUSE <= found["seconds"] <= time.perf_counter() - start
    assert 0 < found["cpu_seconds"] < found["seconds"], "waiting takes no CPU"
    threads = torch.get_num_threads()
    assert found["hardware"] == [f"cpu, {threads} thread" + "s" * (threads > 1)]


def test_what_is_looked_at_on_the_way_costs_no_training(tmp_path, monkeypatch):
    original = DenoiserModule.validation_step

    def validation_step(self, batch, batch_idx):
        time.sleep(0.5)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "validation_step", validation_step)
    start = time.perf_counter()
    found = record(fit(digits_config(tmp_path, "trainer.validate_every=3")).run)
    assert found["seconds"] < time.perf_counter() - start - 1.0


def test_a_run_that_goes_on_adds_up(tmp_path, slow, monkeypatch):
    config = toy_config(tmp_path, "trainer.checkpoint_every=1")
    inner, left = DenoiserModule.training_step, [True]

    def training_step(self, batch, batch_idx):
        if int(batch["step"]) == 3 and left:
            left.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "training_step", training_step)
    cut = fit(config)
    assert cut.exit_code == 75
    assert not (cut.run / runs.TRAINING).exists(), "it is not trained yet"
    before = read_checkpoint(cut.run / runs.CHECKPOINTS / "last.ckpt")["training"]
    assert before["images"] == 4 * 8
    assert fit(config, cut.run).exit_code == 0
    found = record(cut.run)
    assert found["images"] == 6 * 8
    assert found["seconds"] >= before["seconds"] + 2 * PAUSE >= 6 * PAUSE
    assert found["cpu_seconds"] > before["cpu_seconds"] > 0
    assert len(found["hardware"]) == 1
    # complete already: nothing is added
    assert fit(config, cut.run).exit_code == 0
    assert record(cut.run) == found


def test_what_an_earlier_version_trained_is_not_known(tmp_path):
    config = toy_config(tmp_path, "trainer.steps=3")
    run = fit(config).run
    path = run / runs.CHECKPOINTS / "last.ckpt"
    checkpoint = read_checkpoint(path)
    del checkpoint["training"]
    torch.save(checkpoint, path)
    fit(toy_config(tmp_path), run)
    found = record(run)
    assert (found["images"], found["seconds"], found["cpu_seconds"]) == (6 * 8, None, None)


def test_a_subject_says_what_its_training_cost_and_nothing_where_that_is_not_known(tmp_path):
    run = fit(autoencoder_config("vae", tmp_path)).run
    subject, found = load_subject(str(run), "runs"), record(run)
    assert subject.training == {
        "images_seen": 6 * 8,
        "training_seconds": found["seconds"],
        "training_cpu_seconds": found["cpu_seconds"],
        "trained_on": found["hardware"][0],
    }
    for text in ("", "[]", '{"images": -1}', '{"images": 1, "seconds": NaN, "cpu_seconds": 1, "hardware": []}'):
        (run / runs.TRAINING).write_text(text)
        assert set(subject.training.values()) == {None}
    (run / runs.TRAINING).unlink()
    assert set(subject.training.values()) == {None}


class Events:
    """Marks of a GPU that works for a pause after each is asked for: what the host does meanwhile is no matter."""

    clock, waits = 0.0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Events.clock += PAUSE
        self.at = Events.clock

    def elapsed_time(self, end):
        return 1000.0 * (end.at - self.at)

    def synchronize(self):
        Events.waits += 1


def test_what_a_device_still_does_is_of_the_step(monkeypatch):
    """Kernels are queued: the step ends when the device does, for which the host waits once in many steps."""
    monkeypatch.setattr(torch.cuda, "Event", Events)
    monkeypatch.setattr("diffusion.training.record.device_name", lambda device: "a device")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module = L.LightningModule()
    for steps in (2, 250):
        Events.waits = 0
        counted = TrainingRecord(8, torch.device("cuda"))
        for step in range(steps):
            counted.on_train_batch_start(trainer, module, None, step)
            counted.on_train_batch_end(trainer, module, None, None, step)
        counted.on_train_batch_start(trainer, module, None, steps)  # a step that an exception cuts off is left out
        assert counted.to_dict()["seconds"] == pytest.approx(steps * PAUSE)
        assert Events.waits == 1 + steps // 100
