"""--verify-resume: passes where resuming is exact, says what differs where it is not, and leaves nothing."""

import shutil
import sys
import tempfile

import pytest
import torch
from tiny_configs import toy_arguments, toy_config

from diffusion.commands.app import command
from diffusion.commands.train import verify_resume as verify
from diffusion.commands.train.train import train
from diffusion.errors import UserError
from diffusion.training.checkpoint_io import read_checkpoint
from diffusion.training.fit import fit
from diffusion.training.modules.denoiser import DenoiserModule
from diffusion.training.stopping import Callback

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Fails(Callback):
    """In place of SIGKILL, which would end the tests."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise KeyError("killed")


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """The three runs in this process, and the temporary folder under `tmp_path`."""

    def train_here(config, run, kill_after=None):
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        if kill_after is None:
            fit(config, run)
        else:
            with pytest.raises(KeyError, match="killed"):
                fit(config, run, [Fails(kill_after)])

    monkeypatch.setattr(verify, "_train", train_here)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


ARGUMENTS = ("trainer.validate_every=100", "network.dropout=0.2")


def test_an_exact_resume_passes_and_leaves_nothing(in_process, capsys):
    assert command(train, [*toy_arguments(in_process, *ARGUMENTS), "--verify-resume"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("passed: 8 steps straight, and 5 steps, SIGKILL, then 4 to 8 in a new process: ")
    assert "all bits are equal" in out
    assert list((in_process / "temporary").iterdir()) == []
    assert not (in_process / "runs").exists()


def test_what_is_not_exact_is_named(in_process, capsys, monkeypatch):
    original, calls = DenoiserModule.training_step, []

    def forgetful(self, batch, batch_idx):  # as if the noise came from a state that no checkpoint holds
        calls.append(1)
        return original(self, batch, batch_idx) * (1.0 + 1e-3 * (len(calls) > 8 + 5))

    monkeypatch.setattr(DenoiserModule, "training_step", forgetful)
    assert command(train, [*toy_arguments(in_process, *ARGUMENTS), "--verify-resume"]) == 1
    out = capsys.readouterr().out
    assert "train/grad_norm at step 4: " in out or "averaged weights: " in out
    assert "failed: " in out


def test_a_difference_of_one_bit_is_found(tmp_path):
    run = fit(toy_config(tmp_path)).run
    copy = shutil.copytree(run, tmp_path / "copy")
    assert verify.compare(run, copy)[0] == []
    state = read_checkpoint(copy / verify.CHECKPOINT)
    weight = next(value for value in state["state_dict"].values() if value.dtype == torch.float32)
    weight.view(torch.int32).view(-1)[0] ^= 1
    torch.save(state, copy / verify.CHECKPOINT)
    (found,) = verify.compare(run, copy)[0]
    assert found.startswith("weights: ")


@pytest.mark.slow
def test_it_passes_with_real_processes_and_a_real_kill(tmp_path, capsys):
    assert verify.verify_resume(toy_config(tmp_path, *ARGUMENTS)) == 0
    assert capsys.readouterr().out.startswith("passed: ")


def test_a_configuration_that_cannot_be_trained_is_the_users_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"--verify-resume: training ended with code 1, not 0: no message"):
        verify.verify_resume(toy_config(tmp_path))
