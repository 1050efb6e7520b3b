"""Runs that are killed, stopped, damaged or starved of disk: they end as if nothing had happened, or say what has."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_configs import digits_arguments, digits_config, toy_arguments, toy_config
from tiny_training import LIGHTNING_WARNINGS

from diffusion import load
from diffusion.commands.train.verify_resume import compare
from diffusion.errors import UserError
from diffusion.models import DiffusionModel
from diffusion.storage import runs, tensor_files
from diffusion.training import callbacks
from diffusion.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from diffusion.training.fit import fit
from diffusion.training.gradient_guard import TrainingDivergedError
from diffusion.training.logs.metrics import MetricsLog, read_metrics
from diffusion.training.modules.denoiser import DenoiserModule

pytestmark = [*LIGHTNING_WARNINGS, pytest.mark.usefixtures("quick")]

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
LAST = Path(runs.CHECKPOINTS) / "last.ckpt"


def assert_equal_bits(a, b):
    assert compare(a, b)[0] == []
    ours, theirs = (tensor_files.read_model(run / runs.MODEL)[0] for run in (a, b))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def killing(forked, *arguments):
    """The lines that killing.py prints for these commands, one after another in one process."""
    code, said, told = forked("killing.py", *arguments, timeout=3600, TMPDIR=other_file_system())
    assert code == 0, told[-2000:]
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def other_file_system():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"


# --- exact resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kills", "steps", "writes"), [(4, 40, 10), pytest.param(40, 240, 100, marks=SLOW)])
def test_runs_and_writes_that_are_killed_at_random_points_leave_nothing_torn_or_lost(
    tmp_path, forked, kills, steps, writes
):
    options = (
        f"trainer.steps={steps}", "trainer.validate_every=5", "trainer.sample_every=4", "trainer.checkpoint_every=3",
        "evaluation.enabled=false", "evaluation.batch_size=16", "network.dropout=0.2",
    )  # fmt: skip
    (tmp_path / "written").mkdir()
    arguments = toy_arguments(tmp_path / "killed", *options)
    writing = ("writing", writes, 0, tmp_path / "written")
    written, found = killing(forked, *writing, "then", "training", kills, 1, *arguments)
    assert (written["torn"], written["lost"]) == (0, 0)
    assert written["while writing"] > writes // 4, "few kills hit a write: the test shows nothing"

    assert sum(found["hits"].values()) == kills, "the run was complete before all kills were used"
    assert min(found["hits"].values()) == kills // 4
    whole = fit(toy_config(tmp_path / "whole", *options)).run
    (killed,) = (tmp_path / "killed" / "runs").iterdir()
    assert_equal_bits(killed, whole)
    assert not list(killed.rglob(".*")), "remnants"
    assert len(list((killed / runs.CHECKPOINTS).glob("step-*"))) == 2


VARIANTS = {
    "plain": (),
    "workers": ("trainer.workers=2",),
    "accumulate and clip": ("trainer.accumulate=2", "optimizer.gradient_clip=0.01"),
    "bf16": ("trainer.precision=bf16",),
    "muon": ("optimizer.name=muon",),
    "compile": ("trainer.compile=true",),
}


def resumed_from_every_step(folder, config, steps):
    """Train once, keep the checkpoint of every step, and go on from each of them in a folder of its own."""
    whole = fit(config).run
    for step in steps:
        again = folder / f"from-{step}"
        (again / runs.CHECKPOINTS).mkdir(parents=True)
        (again / runs.SAMPLES).mkdir()
        shutil.copy(whole / "metrics.jsonl", again)
        shutil.copy(whole / runs.CHECKPOINTS / f"step-{step:08d}.ckpt", again / LAST)
        assert read_checkpoint(again / LAST)["global_step"] == step
        fit(config, again)
        assert_equal_bits(whole, again)


ALL_STEPS = ("trainer.checkpoint_every=1", "trainer.keep_last=100", "evaluation.enabled=false")


@pytest.mark.parametrize(("optimizer", "steps"), [("adamw", range(1, 7)), ("muon", (1, 4))])
def test_resumed_from_any_step_a_run_is_the_run(tmp_path, optimizer, steps):
    options = (*ALL_STEPS, "trainer.steps=6", "trainer.validate_every=2", "trainer.sample_every=3",
               f"optimizer.name={optimizer}")  # fmt: skip
    resumed_from_every_step(tmp_path, toy_config(tmp_path, *options, "network.dropout=0.2"), steps)


@SLOW
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_from_each_of_40_steps_over_3_epochs_a_run_is_the_run(tmp_path, monkeypatch, variant, pytestconfig):
    if variant == "compile" and pytestconfig.getoption("jaxtyping_packages", None):
        pytest.skip("dynamo cannot trace the shape checks of the tests: run with -o addopts= -m slow -k compile")
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="aot_eager"))
    options = (*ALL_STEPS, "trainer.steps=40", "trainer.batch_size=96", "trainer.validate_every=7")
    config = digits_config(tmp_path, *options, "network.dropout=0.2", *VARIANTS[variant])
    resumed_from_every_step(tmp_path, config, range(1, 41))


# --- durable writes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """From the call on no file can grow beyond so many bytes: a write fails as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk_leaves_the_former_checkpoint_and_a_clear_error(tmp_path, full_disk):
    content = {"state_dict": {"w": torch.ones(100_000)}, "global_step": 1}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    full_disk(100_000)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written .*the former checkpoint is whole"):
        AtomicCheckpointIO().save_checkpoint({**content, "global_step": 2}, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_the_run_goes_on_later(tmp_path, full_disk, monkeypatch):
    config = toy_config(tmp_path, "trainer.checkpoint_every=2", "trainer.steps=6")
    whole = fit(config).run
    original = DenoiserModule.training_step

    def training_step(self, batch, batch_idx):
        if int(batch["step"]) == 3:
            full_disk(2000)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "training_step", training_step)
    with pytest.raises(UserError, match=r"cannot be written .*same command resumes"):
        fit(config)
    monkeypatch.undo()
    full_disk(resource.RLIM_INFINITY)
    cut = tmp_path / "runs" / "toy-0002"
    assert read_checkpoint(cut / LAST)["global_step"] == 2
    fit(config, cut)
    assert_equal_bits(whole, cut)


def test_a_record_that_cannot_be_written_is_a_clear_error(tmp_path, full_disk):
    log = MetricsLog(tmp_path)
    log.log_metrics({"a": 1.0}, step=0)
    full_disk(log.path.stat().st_size + 5)
    log.log_metrics({"a": 2.0}, step=1)  # a part of it
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
        log.log_metrics({"a": 2.0}, step=2)
    full_disk(resource.RLIM_INFINITY)
    log.continue_from(1)
    log.finalize("failed")
    assert read_metrics(log.path) == [{"step": 0, "a": 1.0}]


def damage(path, kind, draw):
    good = bytearray(path.read_bytes())
    if kind == "flip":  # in a weight, where a loader that does not look takes it for one
        weight = max(torch.load(path)["state_dict"].values(), key=torch.Tensor.numel)
        place = bytes(good).index(weight.numpy().tobytes())
        good[place + draw.randrange(weight.nbytes)] ^= 1 << draw.randrange(8)
    else:
        del good[draw.randrange(len(good) - 1) :]
    path.unlink()  # step-....ckpt is a link to the same content
    path.write_bytes(bytes(good))


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_the_checkpoint_before_a_damaged_one_is_used_and_told(tmp_path, capfd, kind):
    config = toy_config(tmp_path, "trainer.checkpoint_every=2", "trainer.steps=6", "trainer.keep_last=2")
    run = fit(config).run
    whole = shutil.copytree(run, tmp_path / "whole")
    damage(run / LAST, kind, random.Random(0))
    (run / runs.CHECKPOINTS / "step-00000006.ckpt").unlink()
    capfd.readouterr()
    fit(config, run)
    told = capfd.readouterr().err
    assert "last.ckpt: the checkpoint is cut short or corrupt" in told
    assert "going on from" in told
    assert "step-00000004.ckpt in its place" in told
    assert_equal_bits(whole, run)


@pytest.mark.parametrize("cuts", [10, pytest.param(50, marks=SLOW)])
def test_no_cut_checkpoint_is_loaded(tmp_path, cuts):
    path, draw = tmp_path / "last.ckpt", random.Random(0)
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.randn(500)}, "global_step": 1}, path)
    good = path.read_bytes()
    for _ in range(cuts):
        path.write_bytes(good)
        damage(path, "cut", draw)
        with pytest.raises(UserError, match="cut short or corrupt"):
            AtomicCheckpointIO().load_checkpoint(path)


# --- stopping ---------------------------------------------------------------------------------------------------------


def signalled(monkeypatch, owner, name, at, number=signal.SIGTERM):
    """The process is signalled at the `at`-th call of a function."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


PLACES = {  # where the signal comes, and the step that the checkpoint is of
    "validation": (DenoiserModule, "validation_step", 2, 2),
    "the step of a validation": (DenoiserModule, "training_step", 4, 4),
    "sampling": (callbacks.pictures, "save_samples", 1, 3),
    "the last validation": (DenoiserModule, "validation_step", 5, 6),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The overrides of a run, and its folder."""
    options = ("trainer.validate_every=2", "trainer.sample_every=3", "evaluation.batch_size=32")
    return options, fit(toy_config(tmp_path_factory.mktemp("whole"), *options)).run


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_anywhere_loses_nothing_of_the_curve(tmp_path, monkeypatch, whole, place):
    options, whole = whole
    config = toy_config(tmp_path, *options)
    owner, name, at, step = PLACES[place]
    with monkeypatch.context() as patch:
        signalled(patch, owner, name, at)
        cut = fit(config)
    assert cut.exit_code == 75
    assert not (cut.run / runs.MODEL).exists()
    assert read_checkpoint(cut.run / LAST)["global_step"] == step
    assert fit(config, cut.run).exit_code == 0
    assert_equal_bits(whole, cut.run)
    assert len([row for row in read_metrics(cut.run / "metrics.jsonl") if "validation/loss" in row]) == 3


def test_a_signal_leaves_the_sampler_and_the_grid_is_drawn_later(tmp_path, monkeypatch):
    config = toy_config(tmp_path, "trainer.sample_every=3", "sampling.sampler=ddim")
    with monkeypatch.context() as patch:
        signalled(patch, DiffusionModel, "sample", 1)
        cut = fit(config)
    grid = cut.run / runs.SAMPLES / "step-00000003.png"
    assert (cut.exit_code, grid.exists()) == (75, False)
    fit(config, cut.run)
    assert grid.exists()


# --- divergence -------------------------------------------------------------------------------------------------------


def failing(monkeypatch, steps):
    """The loss overflows for the first sample of these steps, with a gradient that stays finite."""
    original = DenoiserModule.training_step

    def training_step(self, batch, batch_idx):
        objective = self.objective

        def overflowing(*args):
            losses = objective(*args)
            if int(batch["step"]) in steps:
                losses.weighted.data[0] = torch.inf
            return losses

        object.__setattr__(self, "objective", overflowing)
        try:
            return original(self, batch, batch_idx)
        finally:
            object.__setattr__(self, "objective", objective)

    monkeypatch.setattr(DenoiserModule, "training_step", training_step)


def test_a_loss_that_is_not_finite_drops_the_step_and_is_told_with_its_noise_level(tmp_path, monkeypatch, capfd):
    failing(monkeypatch, {2, 4})
    run = fit(toy_config(tmp_path, "trainer.log_every=100")).run
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "dropped/steps" in row]
    assert [(row["step"], row["dropped/steps"]) for row in rows] == [(2, 1.0), (4, 2.0)]
    assert all(row["dropped/log_snr_low"] == row["dropped/log_snr_high"] for row in rows)
    level = rows[0]["dropped/log_snr_low"]
    told = capfd.readouterr().err
    assert f"step 2 dropped, its gradient is not finite; the loss of 1 data failed, at log-SNR {level:.2f}" in told


def test_too_many_failures_in_a_row_end_the_run_at_its_last_good_checkpoint(tmp_path, monkeypatch):
    failing(monkeypatch, range(3, 100))
    with pytest.raises(TrainingDivergedError, match=r"11 steps in a row, .*last good checkpoint is .*last\.ckpt"):
        fit(toy_config(tmp_path, "trainer.steps=50", "trainer.checkpoint_every=2"))
    state = read_checkpoint(tmp_path / "runs" / "toy-0001" / LAST)
    assert all(bool(value.isfinite().all()) for value in state["state_dict"].values())


# --- W&B --------------------------------------------------------------------------------------------------------------


@SLOW
def test_training_goes_on_when_the_process_of_wandb_is_killed(tmp_path):
    arguments = digits_arguments(tmp_path, "trainer.steps=60", "evaluation.enabled=false")
    command = [sys.executable, ROOT / "train.py", *arguments, "--wandb", "offline"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        metrics = tmp_path / "runs" / "digits-0001" / "metrics.jsonl"
        while run.poll() is None and not (metrics.exists() and metrics.stat().st_size > 500):
            time.sleep(0.05)
        for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
            if "wandb" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    steps = [row["step"] for row in read_metrics(metrics) if "train/loss" in row]
    assert steps == list(range(60))
    assert "W&B: logging failed" in err
    assert "Traceback" not in err


# --- a changed configuration ------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_another_learning_rate_and_keeps_its_former_configuration(tmp_path):
    before = toy_config(tmp_path, "trainer.steps=4", "optimizer.warmup=1")
    run = fit(before).run
    text = (run / runs.CONFIG).read_text()
    changes = ("trainer.steps=6", "optimizer.lr=2e-3", "optimizer.decay=constant")
    after = toy_config(tmp_path, "optimizer.warmup=1", *changes)
    fit(after, run)
    assert load(run).config == after
    assert (run / "config-1.yaml").read_text() == text
    rows = read_metrics(run / "metrics.jsonl")
    rates = [row["train/learning_rate"] for row in rows if "train/learning_rate" in row]
    assert rates[-1] == pytest.approx(2e-3)
