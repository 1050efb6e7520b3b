"""A signal is a checkpoint, a stop after the present step, and an exit code of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import LIGHTNING_WARNINGS, Run, TinyModule

from diffusion.storage import run_status
from diffusion.training.checkpoint_io import read_checkpoint
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.stopping import exits_on_sigterm

pytestmark = LIGHTNING_WARNINGS


class Signalled(TinyModule):
    """Receives a signal in the middle of a step."""

    def __init__(self, step, *numbers):
        super().__init__()
        self.step, self.numbers = step, numbers

    def training_step(self, batch, batch_idx):
        if self.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return super().training_step(batch, batch_idx)


@pytest.fixture(autouse=True)
def _handlers():
    """Background shells start with SIGINT ignored; whatever the test does, the former handlers come back."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_and_saves(tmp_path, number, code):
    former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    module = Signalled(3, number)
    run = Run(tmp_path, 10, every=100, validate_every=5).fit(module)
    assert run.stop.exit_code == code
    assert run.trainer.global_step == 4
    assert read_checkpoint(run.checkpoints.last)["global_step"] == 4
    assert module.validated_at == [], "there is no time for a validation before the SIGKILL"
    assert run.trainer.limit_val_batches == 1
    assert {n: signal.getsignal(n) for n in former} == former


def test_a_stopped_run_continues_bit_equal(tmp_path):
    whole = Run(tmp_path / "whole", 8, every=100, validate_every=2).fit(TinyModule())
    Run(tmp_path / "cut", 8, every=100, validate_every=2).fit(Signalled(4, signal.SIGTERM))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = Run(tmp_path / "cut", 8, every=100, validate_every=2).fit(TinyModule(), resume=last)
    assert resumed.stop.exit_code == 0
    assert resumed.log.path.read_text() == whole.log.path.read_text()
    for name, tensor in whole.module.state_dict().items():
        assert tensor.equal(resumed.module.state_dict()[name])


def test_a_signal_in_the_last_step_does_not_make_a_complete_run_incomplete(tmp_path):
    run = Run(tmp_path, 4).fit(Signalled(3, signal.SIGTERM))
    assert run.stop.exit_code == 0
    assert read_checkpoint(run.checkpoints.last)["global_step"] == 4


def test_a_signal_after_the_last_step_is_remembered(tmp_path):
    """What comes after training, measuring, takes longer than a scheduler waits."""
    run = Run(tmp_path, 4).fit(Signalled(3, signal.SIGTERM))
    assert (run.stop.exit_code, run.stop.late_code) == (0, 75)
    assert Run(tmp_path / "again", 4).fit(TinyModule()).stop.late_code == 0


def test_a_second_sigint_interrupts_at_once(tmp_path):
    former = signal.getsignal(signal.SIGTERM)
    run = Run(tmp_path, 10)
    with pytest.raises(KeyboardInterrupt):  # of which Lightning makes exit code 1
        run.fit(Signalled(3, signal.SIGINT, signal.SIGINT))
    assert run.trainer.global_step == 3
    assert signal.getsignal(signal.SIGTERM) == former


@pytest.mark.slow  # as commands/test_cli.py and test_stopping_together.py, of a process without a command
def test_sigterm_to_a_process_gives_75_and_a_checkpoint(tmp_path):
    script = Path(__file__).parent / "tiny_training.py"
    command = [sys.executable, script, tmp_path, "100000", "0.01"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        metrics = tmp_path / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 200):
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    step = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    assert step > 0
    assert read_metrics(metrics)[-1]["step"] == step - 1


@pytest.mark.parametrize(
    ("number", "code", "error"), [(signal.SIGTERM, 75, SystemExit), (signal.SIGINT, 130, KeyboardInterrupt)]
)
def test_a_measurement_is_left_at_once_and_the_run_says_why(tmp_path, number, code, error):
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error) as stop, exits_on_sigterm(tmp_path):
        signal.raise_signal(number)
    assert error is KeyboardInterrupt or stop.value.code == code
    assert run_status.exit_code(tmp_path) == code
    run_status.clear(tmp_path)
    assert run_status.exit_code(tmp_path) == 0
    assert signal.getsignal(signal.SIGTERM) == former
