"""train.py in process: from the arguments to the table; bad input is one line, and leaves nothing behind."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal_width import fits, next_words
from tiny_configs import autoencoder_arguments, digits_arguments, toy_arguments, toy_config

from diffusion.commands import evaluation, report
from diffusion.commands.app import command
from diffusion.commands.train.train import train
from diffusion.config import dump_config
from diffusion.errors import UserError
from diffusion.storage import runs
from diffusion.training.checkpoint_io import read_checkpoint
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.logs.wandb import WandbMirror
from diffusion.training.modules.denoiser import DenoiserModule

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

ROOT = Path(__file__).parents[2]
QUICK = ("evaluation.images=20", "evaluation.tolerance=1e-2", "evaluation.elbo_draws=2")


def run_train(capsys, argv):
    code = command(train, argv)
    found = capsys.readouterr()
    return code, found.out, found.err


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_toy_from_the_command_to_the_table(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    argv = toy_arguments(tmp_path, *QUICK, "sampling.sampler=ode", "trainer.validate_every=3")
    code, out, err = run_train(capsys, [*argv, "--wandb", "offline"])
    assert code == 0
    assert "step 6 of 6" in err
    run = tmp_path / "runs" / "toy-0001"
    assert fits(out), out
    assert next_words(out) == ["sample", "--run", str(run), "--sampler", "ode"]
    # each figure of the table is the one in the file
    written = json.loads((run / "evaluation.json").read_text())["estimates"]
    assert list(written) == ["PF-ODE", "ELBO", "true density"]
    for name, entry in written.items():
        line = next(line for line in out.splitlines() if name in line)
        low, high = (math.log(2) * end for end in entry["interval_95"])  # densities are shown in nats
        nats = math.log(2) * entry["bits_per_dim"]
        assert f"{nats:.4f}" in line
        assert f"{entry['dims'] * nats:.4f}" in line
        assert f"{low:.4f} to {high:.4f}" in line
        assert ("upper bound" if entry["kind"] == "lower bound" else entry["kind"]) in line
    for place in ("run folder:", "samples:", "density:", "W&B run:", "parameters:", "seconds:", "next:"):
        assert place in out
    for path in ("config.yaml", "model.safetensors", "metrics.csv", "evaluation.csv", "samples/samples.png"):
        assert (run / path).is_file()
    with Image.open(run / "samples" / "density.png") as picture:
        assert picture.size == (1200, 430)
    (offline,) = (run / "wandb").glob("offline-run-*")
    (record,) = offline.glob("*.wandb")
    content = record.read_bytes()
    for word in (b"eval/bits_per_dim", b"eval/pf-ode/bits_per_dim", b"eval/protocol", b"validation/loss", b"half_life"):
        assert word in content, word


FULL = OSError(28, "No space left", "x/e.json")
FAILURES = [
    ("evaluation", evaluation, "evaluate", UserError("evaluation.images: found 9"), "evaluation.images: found 9"),
    ("evaluation", evaluation, "evaluate", RuntimeError("CUDA is full\nTried"), "RuntimeError: CUDA is full. The run"),
    ("evaluation", evaluation, "write", FULL, "x/e.json: cannot be written (No space left)"),
    ("pictures", report, "write_pictures", UserError("samples: not finite"), "samples: not finite"),
    ("W&B", WandbMirror, "summarise", ConnectionError("no server"), "ConnectionError: no server"),
]


@pytest.mark.parametrize(("part", "owner", "name", "error", "told"), FAILURES, ids=lambda value: str(value)[:30])
def test_a_part_at_the_end_that_fails_does_not_cost_the_model(
    tmp_path, monkeypatch, capsys, part, owner, name, error, told
):
    def fail(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    mode = "--wandb=offline" if part == "W&B" else "logging.wandb=off"
    argv = toy_arguments(tmp_path, *QUICK, "trainer.steps=2", mode)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        code, out, err = run_train(capsys, argv)
    run = tmp_path / "runs" / "toy-0001"
    model = run / "model.safetensors"
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {part}: {told}")
    assert f"The run is complete, and its model is {model}." in line
    assert model.is_file()
    assert "run folder:" in out
    assert (run / "samples" / "samples.png").is_file() == (part != "pictures"), "the other parts are done"
    before = model.read_bytes()
    if part == "evaluation":
        assert (run / "evaluation.json").exists() is False
        code, _, err = run_train(capsys, argv)
        assert (code, f"continuing {run}" in err) == (0, True), "the same command repeats it"
        assert (run / "evaluation.json").is_file()
        assert model.read_bytes() == before


def test_images_that_are_too_few_for_what_is_fitted_at_the_end_are_refused_before_training(tmp_path, capsys):
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(9):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
    argv = ["--config", "eae-digits", "data.name=folder", f"data.path={folder}", f"runs={tmp_path}/runs", "device=cpu"]
    code, _, err = run_train(capsys, argv)
    assert code == 2
    assert re.search(
        r"family: found 'eae', whose mixture of \d+ Gaussians takes as many training images; .* has 7", err
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("alike", [False, True])
def test_codes_that_have_no_report_are_a_line_and_no_failure(tmp_path, monkeypatch, capsys, quick_fit, alike):
    """Of test images that are too few for their neighbours, or that are all one image, nothing can be said."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 24), ("test", 6 if alike else 2)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(0 if alike and split == "test" else i).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{i}.png")
    quick = ("data.name=folder", f"data.path={tmp_path / 'images'}", "evaluation.enabled=false", "logging.wandb=off")
    code, out, err = run_train(capsys, autoencoder_arguments("eae", tmp_path, *quick))
    assert code == 0, err
    reason = "dimension 0 has no variance" if alike else "found 2; needs more than 3"
    assert re.search(rf"codes of test images: no report \(codes: {reason}.*\)", " ".join(out.split())), out
    (run,) = (tmp_path / "runs").iterdir()
    assert list(json.loads((run / "codes.json").read_text())) == ["training images"]


def test_a_stopped_command_is_continued_by_the_same_command(tmp_path, monkeypatch, capsys):
    original = DenoiserModule.training_step

    def training_step(self, batch, batch_idx):
        if int(batch["step"]) == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "training_step", training_step)
    argv = digits_arguments(tmp_path, "evaluation.enabled=false")
    run = tmp_path / "runs" / "digits-0001"
    code, out, err = run_train(capsys, argv)
    assert code == 75
    assert out.startswith("data: 1,797 images")
    assert "at the end" not in out
    assert f"stopped early; the same command resumes {run}" in err
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 3
    assert not (run / runs.MODEL).exists()

    code, _, err = run_train(capsys, [*argv, "--resume", "digits-0001", "optimizer.lr=0.5"])
    assert code == 2
    assert re.fullmatch(
        r"error: --resume: .*digits-0001 was trained with .*: optimizer\.lr: 0\.001 -> 0\.5\. .*\n", err
    )

    code, out, err = run_train(capsys, argv)
    assert code == 0
    assert f"continuing {run}" in err
    assert "denoising path:" in out
    assert "Test likelihood" not in out, "its measurement is off"
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row] == list(range(6))
    with Image.open(run / "samples" / "path.png") as picture:
        assert picture.size[0] > 12 * 64
    assert not (run / "wandb").exists()

    code, _, err = run_train(capsys, argv)
    assert code == 0
    assert "continuing" not in err
    assert (tmp_path / "runs" / "digits-0002" / runs.MODEL).is_file(), "what is finished is not continued"


@pytest.mark.parametrize("resume", ["auto", "toy-0001"])
def test_a_truncated_checkpoint_is_one_line_and_stays_as_it_is(tmp_path, capsys, resume):
    argv = toy_arguments(tmp_path, "evaluation.enabled=false")
    run = runs.create_run(tmp_path / "runs", "toy")
    (run / "config.yaml").write_text(dump_config(toy_config(tmp_path, "evaluation.enabled=false")))
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, run / "checkpoints/last.ckpt")
    cut = (run / "checkpoints/last.ckpt").read_bytes()[:-300]
    (run / "checkpoints/last.ckpt").write_bytes(cut)
    before = files(tmp_path)
    code, out, err = run_train(capsys, [*argv, "--resume", resume])
    assert (code, out) == (2, "")
    assert re.search(r"(?m)^error: .*last\.ckpt: the checkpoint is cut short or corrupt", err)
    assert "Traceback" not in err
    assert files(tmp_path) == before
    assert (run / "checkpoints/last.ckpt").read_bytes() == cut


def png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with an empty folder, a folder with a corrupt image, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    for i in range(8):
        png(tmp_path / "corrupt" / f"{i}.png")
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    (tmp_path / "corrupt" / "bad.png").write_bytes(buffer.getvalue()[:40])
    (tmp_path / "broken.yaml").write_text("trainer: {steps: [1\n")
    return tmp_path


FOLDER = ("data.name=folder", "network.name=unet")
BAD = [
    (["trainer.step=3"], r"unknown key 'trainer\.step' on the command line\. Did you mean 'trainer\.steps'"),
    (["schedule.name=cosin"], r"schedule\.name: found '?cosin'?.*Did you mean 'cosine'"),
    (["trainer.steps=0"], r"trainer\.steps: found 0; must be .*at least 1"),
    (["trainer.steps=many"], r"trainer\.steps: found '?many'?"),
    (["sampling.steps=0"], r"sampling\.steps: found 0"),
    (["sampling.sampler=odee"], r"sampling\.sampler: found 'odee'; must be one of ode, .*Did you mean 'ode'"),
    (["sampling.sampler=ode", "sampling.eta=0.5"], r"sampling\.eta: sampler 'ode' does not take it"),
    (["sampling.sampler=sde", "sampling.eta=1000"], r"eta: too large for this path"),
    (["sampling.sampler=ddim", "sampling.eta=2"], r"sampling\.eta: found 2\.0; DDIM takes 0 to 1"),
    (["evaluation.tolerance=-1e-3"], r"evaluation\.tolerance: found -?0?\.?.*must be .*above 0"),
    (["evaluation.tolerance=2"], r"evaluation\.tolerance: found 2.*below 1"),
    (["optimizer.lr=-1"], r"optimizer\.lr: found -1"),
    (["device=cuda"], r"device: 'cuda' does not exist: 0 GPU\(s\) found"),
    (["trainer.batch_size=9", "trainer.accumulate=2"], r"trainer\.batch_size: found 9; must be a multiple"),
    (["network.attention=[5]"], r"network\.attention: no feature map has height 5; "),
    (["data.name=moons"], r"network\.name: found 'unet'; data of shape \(2,\) need mlp"),
    ([*FOLDER, "data.path=empty"], r"data\.path: no image found in .*empty"),
    ([*FOLDER, "data.path=absent"], r".*absent"),
    ([*FOLDER, "data.path=corrupt"], r".*bad\.png"),
    ([*FOLDER], r"data\.path: "),
    (["data.name=mnist", "data.download=false", "data.root=nowhere"], r".*nowhere"),
    (["name=a/b"], r"name: found 'a/b'"),
    (["--config", "cifr"], r"--config: given twice"),
    (["--resume", "nothing"], r"--resume: there is no run 'nothing'"),
    (["--wandb", "onlin"], r"logging\.wandb: found '?onlin'?.*Did you mean 'online'"),
    (["--stesp", "3"], r"unknown option '--stesp'"),
    (["cifar"], r"unknown argument 'cifar'.*Did you mean '--config cifar'"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_is_one_line_and_leaves_nothing(here, capsys, argv, message):
    before = files(here)
    code, out, err = run_train(capsys, [*digits_arguments(here), *argv])
    assert code == 2
    assert out == "" or out.startswith("data: 1,797 images"), "what asks the sampler comes after the data are read"
    assert ("(not with evaluation.enabled=false)" in " ".join(out.split())) == bool(out), "how not to wait at the end"
    assert re.fullmatch(rf"error: {message}.*\n", err), err
    assert files(here) == before, "no run folder before the data are known to be good"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "cifr"], r"configuration '?cifr'?: not found; .*Did you mean 'cifar'"),
        (["--config", "broken.yaml"], r"broken\.yaml"),
        (["--config", "absent.yaml"], r"configuration '?absent\.yaml'?: not found"),
        (["--config"], r"--config: needs a value"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(here, capsys, argv, message):
    code, out, err = run_train(capsys, argv)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: {message}.*\n", err), err


def test_a_mode_of_wandb_that_there_is_not_is_told_before_a_run_is_made(here, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    code, _, err = run_train(capsys, digits_arguments(here, "logging.wandb=auto"))
    assert code == 2
    assert re.fullmatch(r"error: WANDB_MODE: 'ofline' is not known.*Did you mean 'offline'\?\n", err)
    assert not (here / "runs").exists()


def test_data_that_cannot_be_fetched_are_one_line(here, capsys, monkeypatch):
    """No network: every connection fails as it does without one."""
    import socket

    def refuse(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    code, out, err = run_train(capsys, digits_arguments(here, "data.name=mnist", "data.root=fetched"))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*\n", err), err
    assert not (here / "runs").exists()
    assert not [path for path in here.glob("fetched/**/*") if path.is_file()], "nothing half fetched"


def test_the_resolved_configuration_is_printed_on_request(here, capsys):
    with pytest.raises(SystemExit) as stop:
        command(train, ["--config", "toy", "trainer.steps=7", "--print_config"])
    assert stop.value.code == 0
    assert "steps: 7" in capsys.readouterr().out
    assert not (here / "runs").exists()


def test_the_exit_code_of_a_command_is_that_of_its_body(capsys):
    def fails(argv):
        raise UserError("key: found 1; must be 2")

    def interrupted(argv):
        raise KeyboardInterrupt

    assert command(lambda argv: 75, []) == 75
    assert command(fails, []) == 2
    assert capsys.readouterr().err == "error: key: found 1; must be 2\n"
    assert command(interrupted, []) == 130
    with pytest.raises(ZeroDivisionError):  # what is our fault keeps its traceback
        command(lambda argv: 1 // 0, [])


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_the_scripts_are_the_commands(tmp_path, script):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--nonsense", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: unknown option '--nonsense'\..*\n", done.stderr), done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_line(tmp_path, capsys):
    def body(argv):
        (tmp_path / "nowhere" / "x").write_text("")
        return 0

    assert command(body, []) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nowhere/x: No such file or directory\n"

    def bug(argv):
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):  # not the user's: with its traceback
        command(bug, [])
