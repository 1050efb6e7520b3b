"""Signals and deaths among several processes: all stop together, and the run goes on to the same bits."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_distributed import in_two_processes
from tiny_configs import toy_arguments

from diffusion.commands.app import command
from diffusion.commands.train.train import train
from diffusion.commands.train.verify_resume import compare
from diffusion.storage import runs
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.storage.tensor_files import read_model
from diffusion.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
CODES = {"TERM": 75, "INT": 130}
LIMIT = 10.0  # seconds from the signal, and a step
LAST_BREATH = 30.0  # seconds that a process lives on after another has died


def assert_equal_bits(a, b):
    assert compare(a, b)[0] == []
    ours, theirs = (read_model(run / runs.MODEL)[0] for run in (a, b))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


# --- in one launch: every place, whoever is signalled -----------------------------------------------------------------

FEW = ("training:1:TERM", "validation:1:INT", "sampling:all:TERM")
ALL = tuple(
    f"{place}:{who}:{name}"
    for place in ("training", "validation", "sampling")
    for who in ("0", "1", "all")
    for name in CODES
)
_DRAW = random.Random(5)
TRIES = tuple(
    f"{_DRAW.uniform(0, 1.0):.3f}:{_DRAW.choice(['0', '1', 'all'])}:{_DRAW.choice(list(CODES))}" for _ in range(10)
)


@pytest.mark.parametrize(
    ("strategy", "scenes"),
    [
        ("ddp", FEW),
        pytest.param("ddp", ALL, marks=SLOW),
        pytest.param("ddp", TRIES, marks=SLOW),
        pytest.param("sharded", (*ALL[::2], *TRIES[::2]), marks=SLOW),
    ],
    ids=["few", "all", "tries", "sharded"],
)
def test_a_signal_to_any_process_stops_all_and_loses_nothing(tmp_path, forked, strategy, scenes):
    said, _ = in_two_processes(
        forked, tmp_path, "signalled_processes.py", str(tmp_path), strategy, *scenes, timeout=1500
    )
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(found) == 2 * len(scenes)
    (whole,) = (tmp_path / "runs").glob("whole-*")
    for told in found:
        place, _, name = told["scene"].split(":")
        if place not in ("training", "validation", "sampling") and told["code"] == 0:
            continue  # one of the random tries, after the run was complete
        assert told["code"] == CODES[name], told
        assert told["seconds"] < LIMIT, told
        run = tmp_path / "runs" / told["run"]
        assert_equal_bits(run, whole)
        assert [path.name for path in sorted((run / runs.SAMPLES).iterdir())] == [
            "step-00000006.png", "step-00000012.png",
        ]  # fmt: skip
    hits = sum(bool(told["code"]) for told in found) // 2
    longest = max(told["seconds"] or 0.0 for told in found)
    print(f"{hits} of {len(scenes)} signals came while a run was trained; {longest:.1f} s at most")
    assert hits > len(scenes) / 2, "too few tries hit a run"


# --- the command itself, under its launchers --------------------------------------------------------------------------

# train.py, which also writes down how it ends: a launcher tells nobody.
PROGRAM = """
import os, sys
from diffusion.commands.app import command
from diffusion.commands.train.train import train
from diffusion.processes import end
code = command(train)
open(f"{os.environ['CODES']}/{os.environ.get('RANK', os.environ.get('LOCAL_RANK', '0'))}", "w").write(str(code))
end(code)
"""
LONG = (
    "trainer.steps=100000", "trainer.validate_every=50", "trainer.sample_every=0", "trainer.checkpoint_every=20",
    "evaluation.enabled=false",
)  # fmt: skip


class Launched:
    """A run of two processes under a launcher, from its first logged step on."""

    def __init__(self, folder, launcher, *settings):
        self.folder, self.arguments = folder, toy_arguments(folder, *LONG, *settings)
        (folder / "codes").mkdir()
        (folder / "program.py").write_text(PROGRAM)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "DIFFUSION"))}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CODES": str(folder / "codes")}
        agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
        command = [folder / "program.py", *self.arguments]
        with open(folder / "said", "w") as said:
            if launcher == "torchrun":
                starts = [([*agent, *command], {})]
            elif launcher == "devices":
                starts = [([sys.executable, *command, "trainer.devices=2"], {})]
            else:  # nobody looks after them
                place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
                starts = [([sys.executable, *command], place | {"RANK": rank}) for rank in "01"]
            self.started = [
                subprocess.Popen(line, env=environment | more, cwd=folder, stdout=said, stderr=said)
                for line, more in starts
            ]
        self.wait_for_step(1)

    @property
    def run(self):
        return self.folder / "runs" / "toy-0001"

    def wait_for_step(self, step):
        metrics, end = self.run / "metrics.jsonl", time.time() + 300
        while not (metrics.is_file() and (rows := read_metrics(metrics)) and rows[-1]["step"] >= step):
            assert all(process.poll() is None for process in self.started), self.said()
            assert time.time() < end, self.said()
            time.sleep(0.1)

    def workers(self):
        """The process ids of ranks 0 and 1."""
        found = {}
        for pid in {pid for process in self.started for pid in (process.pid, *children(process.pid))}:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"program.py" not in line or b"torch.distributed.run" in line:
                continue
            ranks = [entry.split(b"=")[1] for entry in environment if entry.startswith((b"RANK=", b"LOCAL_RANK="))]
            found[int(ranks[0]) if ranks else 0] = pid
        assert sorted(found) == [0, 1], self.said()
        return found

    def wait(self, seconds):
        """The seconds until all that was started has ended, and the exit codes."""
        begin = time.time()
        return [process.wait(max(0.1, begin + seconds - time.time())) for process in self.started]

    def codes(self):
        """The exit codes of the workers that came to their end."""
        return {int(path.name): int(path.read_text()) for path in (self.folder / "codes").iterdir()}

    def said(self):
        return (self.folder / "said").read_text()[-4000:]

    def status(self):
        return command(train, [*self.arguments, "--status"])

    def close(self):
        for process in self.started:
            for pid in (*children(process.pid), process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def launch(tmp_path):
    made = []

    def start(launcher, *settings):
        made.append(Launched(tmp_path, launcher, *settings))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("launcher", "who", "name", "settings"),
    [
        ("torchrun", "agent", "TERM", ("trainer.workers=1", "logging.wandb=offline")),
        pytest.param("torchrun", "agent", "INT", (), marks=SLOW),
        pytest.param("torchrun", "1", "TERM", (), marks=SLOW),
        pytest.param("torchrun", "0", "INT", ("trainer.workers=1",), marks=SLOW),
        pytest.param("torchrun", "all", "TERM", ("trainer.strategy=sharded",), marks=SLOW),
        pytest.param("devices", "0", "TERM", (), marks=SLOW),
        pytest.param("devices", "1", "INT", (), marks=SLOW),
        pytest.param("devices", "all", "TERM", ("trainer.workers=1",), marks=SLOW),
    ],
)
def test_a_signal_to_the_launcher_or_a_worker_is_a_checkpoint_and_the_code(launch, launcher, who, name, settings):
    together = launch(launcher, *settings)
    workers = together.workers()
    targets = {"agent": [together.started[0].pid], "all": [*workers.values()]}.get(who) or [workers[int(who)]]
    for pid in targets:
        os.kill(pid, signal.Signals[f"SIG{name}"])
    begin = time.time()
    (code,) = together.wait(60)
    assert time.time() - begin < LIMIT + 5, "the launcher itself takes a while"
    assert code == (1 if launcher == "torchrun" else CODES[name]), together.said()
    expected = {0: CODES[name], 1: CODES[name] if launcher == "torchrun" else 0}
    assert together.codes().items() <= expected.items(), together.said()
    assert 0 in together.codes()
    if launcher == "torchrun":
        assert together.codes() == expected
    assert together.status() == CODES[name]
    state = read_checkpoint(together.run / runs.CHECKPOINTS / "last.ckpt")
    assert state["global_step"] == read_metrics(together.run / "metrics.jsonl")[-1]["step"] + 1
    assert state["weight_average"]["images_seen"] == state["global_step"] * 8


@SLOW
@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize("launcher", ["torchrun", "devices", "alone"])
def test_when_a_process_dies_the_others_end(launch, launcher, dies):
    together = launch(launcher)
    workers = together.workers()
    if launcher == "alone":  # such a launcher says RANK and WORLD_SIZE alone, and those two are all that there are
        assert not [child for process in together.started for child in children(process.pid)]
        steps = [row["step"] for row in read_metrics(together.run / "metrics.jsonl") if "train/loss" in row]
        assert steps == sorted(set(steps)), "two processes write"
    os.kill(workers[dies], signal.SIGKILL)
    begin = time.time()
    codes = together.wait(LAST_BREATH + 30)
    assert all(codes), together.said()
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in workers.values()):
        assert time.time() - begin < LAST_BREATH, "one lives on"
        time.sleep(0.1)
    assert time.time() - begin < LAST_BREATH
    assert together.status() == 1, "a failure is not a stop"


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
