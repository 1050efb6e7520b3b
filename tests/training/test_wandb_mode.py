"""W&B mirrors the record without key, terminal or network, and its faults are warnings."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import wandb
from small_disk import small_disk
from tiny_configs import digits_arguments, toy_arguments

from diffusion.errors import UserError
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.logs.wandb import has_key, make_wandb_logger, resolve_mode

ROOT = Path(__file__).parents[2]
KEY = {"WANDB_API_KEY": "0" * 40, "HOME": "/nonexistent"}
SECRET = "5ec12e7" * 5 + "abcde"  # as long as a key
NO_KEY = {"HOME": "/nonexistent"}


@pytest.mark.parametrize(
    ("choice", "environment", "expected"),
    [
        ("auto", NO_KEY, "offline"),
        ("auto", KEY, "offline"),
        ("auto", {**KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {**KEY, "WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {**KEY, "WANDB_MODE": "disabled"}, "off"),
        ("off", {**KEY, "WANDB_MODE": "online"}, "off"),
        ("offline", {**KEY, "WANDB_MODE": "online"}, "offline"),
        ("online", {**KEY, "WANDB_MODE": "offline"}, "online"),
    ],
)
def test_the_users_choice_then_the_environment_then_the_key(choice, environment, expected):
    assert resolve_mode(choice, environment) == expected


def test_online_without_a_key_is_offline_with_a_warning():
    for choice, environment in (("online", NO_KEY), ("auto", {**NO_KEY, "WANDB_MODE": "online"})):
        with pytest.warns(UserWarning, match="no API key"):
            assert resolve_mode(choice, environment) == "offline"


def test_a_key_in_the_netrc_file_counts_for_its_host_only(tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password abc\n")
    (tmp_path / ".netrc").chmod(0o600)
    home = {"HOME": str(tmp_path)}
    assert has_key(home)
    assert not has_key({**home, "WANDB_BASE_URL": "https://wandb.example.org"})
    (tmp_path / ".netrc").write_text("machine {{{\n")
    assert not has_key(home)


def test_unknown_modes_are_refused():
    with pytest.raises(UserError, match=r"logging\.wandb.*Did you mean 'offline'"):
        resolve_mode("ofline", NO_KEY)
    with pytest.raises(UserError, match="WANDB_MODE"):
        resolve_mode("auto", {"WANDB_MODE": "sometimes"})


def test_off_makes_no_logger(tmp_path):
    assert make_wandb_logger(tmp_path, "off") is None
    assert os.listdir(tmp_path) == []


def test_an_offline_run_needs_no_key_no_terminal_and_no_network(tmp_path, monkeypatch, capfd):
    run_dir = tmp_path / "digits-0001"
    run_dir.mkdir()
    monkeypatch.setitem(sys.modules, "huggingface_hub.inference", ModuleType("huggingface_hub.inference"))
    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):  # an attempt to reach the network fails
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    begin, ids = time.perf_counter(), []
    for _ in ("first", "resumed"):
        mode = resolve_mode("auto")
        logger = make_wandb_logger(run_dir, mode, config={"seed": 3}, summaries={"validation/loss": "min"})
        assert logger is not None
        for step, loss in enumerate((3.0, 1.0, 2.0)):
            logger.log_metrics({"validation/loss": loss}, step=step)
        logger.summarise({"eval/bits_per_dim": 1.875})
        ids.append(logger.experiment.id)
        logger.finish()
        assert not logger.faulty
    assert time.perf_counter() - begin < 30
    assert ids[0] == ids[1], "a resumed run has to continue the same W&B run"
    assert capfd.readouterr() == ("", "")
    assert os.listdir(run_dir) == ["wandb"]
    first, _ = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", first]
    read = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    seen = json.loads(read.stdout)
    assert (seen["state"], seen["name"], seen["config"]) == ("finished", "digits-0001", {"seed": 3})
    assert seen["summary"]["validation/loss"] == {"min": 1}
    assert seen["summary"]["eval/bits_per_dim"] == 1.875
    assert seen["summary"]["trainer/global_step"] == 2
    wandb.teardown()
    monkeypatch.undo()
    os.environ.pop("WANDB_SERVICE", None)  # an earlier test's service, brought back, is gone with the teardown


def test_a_run_that_is_open_in_the_process_is_not_written_to(tmp_path):
    open_run = wandb.init(mode="offline", dir=tmp_path, project="theirs", settings=wandb.Settings(silent=True))
    try:
        folder = tmp_path / "digits-0001"
        logger = make_wandb_logger(folder, "offline")
        assert logger is not None
        assert logger.experiment.id != open_run.id
        logger.log_table("ours", columns=["a"], data=[[1]])
        logger.finish()
        assert len(list(folder.glob("wandb/offline-run-*/files/media/table/ours_*.json"))) == 1
        open_run.log({"still": 1})  # an error of W&B's where it was closed
        assert wandb.run is open_run
    finally:
        open_run.finish()


class FaultyRun:
    """A W&B run whose backend has gone."""

    id = "x"

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, *args, **kwargs):
        raise ConnectionError("backend gone")

    def finish(self, *args, **kwargs):
        raise ConnectionError("backend gone")


def test_a_fault_while_logging_is_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", lambda **_: FaultyRun())
    logger = make_wandb_logger(tmp_path, "offline")
    with pytest.warns(UserWarning, match="backend gone") as caught:
        logger.log_metrics({"a": 1.0}, step=0)
    assert len(caught) == 1
    logger.log_metrics({"a": 1.0}, step=1)
    logger.finish()


def test_after_a_signal_nobody_waits_for_a_server(tmp_path, monkeypatch):
    class Silent(FaultyRun):
        def finish(self, *args, **kwargs):
            time.sleep(60)

    monkeypatch.setattr("wandb.init", lambda **_: Silent())
    logger = make_wandb_logger(tmp_path, "offline")
    begin = time.perf_counter()
    with pytest.warns(UserWarning, match=r"not closed within 0\.2 s"):
        logger.finish(75, seconds=0.2)
    assert time.perf_counter() - begin < 5


def test_a_fault_at_the_start_falls_back_to_offline_and_then_to_none(tmp_path, monkeypatch):
    attempts = []

    def init(**options):
        attempts.append((options["mode"], options["settings"].init_timeout))
        raise TimeoutError("no network")

    monkeypatch.setattr("wandb.init", init)
    with pytest.warns(UserWarning, match=r"(online|offline) logging failed .*no network"):
        assert make_wandb_logger(tmp_path, "online") is None
    assert attempts == [("online", 10.0), ("offline", 10.0)]


def seconds_to_the_first_step(folder, *more, **environment):
    """Train with a key and no terminal: the seconds until a step is in the record, and what was said to the end."""
    folder.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    own |= {"OMP_NUM_THREADS": "1", "WANDB_API_KEY": SECRET, "HOME": str(folder), **environment}
    arguments = toy_arguments(folder, "evaluation.enabled=false", *more)
    begin, pipes = time.perf_counter(), {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, ROOT / "train.py", *arguments]
    with subprocess.Popen(command, cwd=folder, env=own, stdin=subprocess.DEVNULL, **pipes) as run:
        while run.poll() is None and not (folder / "runs" / "toy-0001" / "metrics.jsonl").exists():
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    return seconds, said


@pytest.mark.slow
@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_training_starts_soon_where_the_server_cannot_be_reached(tmp_path, server):
    """Within 20 s of when it would start without W&B; offline, with one warning, and the key is nowhere."""
    without, _ = seconds_to_the_first_step(tmp_path / "off", "logging.wandb=off")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if server == "is silent":
            listening.listen(100)  # takes every connection, and answers none
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        seconds, said = seconds_to_the_first_step(tmp_path / "on", "logging.wandb=online", WANDB_BASE_URL=address)
    assert seconds < without + 20
    assert said.count("W&B: ") == 1, said
    assert "W&B: online logging failed" in said
    assert "Traceback" not in said
    run = tmp_path / "on" / "runs" / "toy-0001"
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row] == list(range(6))
    assert SECRET not in said
    for path in (tmp_path / "on").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


# A run whose folder `wandb` lies on a disk of its own.
ON_A_DISK = """
import os, sys
from diffusion.storage import runs
from diffusion.commands.app import command
from diffusion.commands.train.train import train
made = runs.create_run
def create_run(folder, name):
    run = made(folder, name)
    os.symlink(os.environ["DISK"], run / "wandb")
    return run
runs.create_run = create_run
sys.exit(command(train))
"""


@pytest.fixture
def disk(tmp_path, request):
    """A disk of so many KiB."""
    with small_disk(tmp_path / "disk", request.param) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("disk", [8, 32], indirect=True)
def test_training_goes_on_when_the_disk_of_wandb_is_full(tmp_path, disk):
    arguments = digits_arguments(tmp_path, "trainer.steps=30", "evaluation.enabled=false")
    command = [sys.executable, "-c", ON_A_DISK, *arguments, "--wandb", "offline"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DISK": str(disk), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B: logging failed") == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert re.search("Traceback|Logging error", done.stderr) is None, done.stderr
    run = tmp_path / "runs" / "digits-0001"
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row] == list(range(30))
    assert (run / "model.safetensors").is_file()
