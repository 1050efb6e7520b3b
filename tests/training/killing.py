"""What is killed at random points, and has to be whole afterwards.

    python killing.py writing KILLS SEED FOLDER

writes FOLDER/last.ckpt over and over, and prints a line of JSON: how many kills left a file that cannot be read, how
many lost one that had been written, how many came while one was being written. There are more than KILLS, up to ten
times as many, if too few came then.

    python killing.py training KILLS SEED ARGUMENT...

trains `train.py ARGUMENT...` in children of this process (forked after the imports, so that a start takes no time),
which are killed with SIGKILL: KILLS of them, in turn anywhere, in validation, while a grid of samples is drawn, and
while a checkpoint is written. Prints a line of JSON: how often each was hit, and how many starts there were.
Several commands are joined by `then`.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from quick_runs import quick_runs

from diffusion.commands import app
from diffusion.commands.train import train as training
from diffusion.errors import UserError
from diffusion.models import DiffusionModel
from diffusion.storage import atomic
from diffusion.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from diffusion.training.modules.denoiser import DenoiserModule

PHASES = ("training", "validation", "sampling", "writing")
LONGEST = {"training": 0.3, "validation": 0.02, "sampling": 0.01, "writing": 0.004}  # seconds into the phase


def announcing(phase, function, pipe):
    def announced(*args, **kwargs):
        os.write(pipe, phase[:1].encode())
        return function(*args, **kwargs)

    return announced


def child(arguments, pipe):
    """The command itself; it says which phase begins."""
    DenoiserModule.training_step = announcing("training", DenoiserModule.training_step, pipe)
    DenoiserModule.validation_step = announcing("validation", DenoiserModule.validation_step, pipe)
    DiffusionModel.sample = announcing("sampling", DiffusionModel.sample, pipe)
    atomic.writer = announcing("writing", atomic.writer, pipe)
    code = app.command(training.train, arguments)
    os._exit(code)


def start(arguments, target, draw):
    """Run the command; kill it some time after the target phase has begun for a random time, or let it end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(arguments, writing)
    os.close(writing)
    left = draw.randint(1, 6 if target in ("training", "writing") else 2) if target else 0
    while True:
        seen = os.read(reading, 1)
        if not seen:
            break
        left -= seen == target[:1].encode()
        if target and left == 0:
            time.sleep(draw.uniform(0.0, LONGEST[target]))
            os.kill(pid, signal.SIGKILL)
            break
    # A child that waits for its pipe to be read would never end.
    while select.select([reading], [], [], None)[0] and os.read(reading, 4096):
        pass
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def train(kills, seed, arguments):
    draw, hits, starts = random.Random(seed), dict.fromkeys(PHASES, 0), 0
    code = None
    runs = Path(next(argument.removeprefix("runs=") for argument in arguments if argument.startswith("runs=")))
    while code != 0 and sum(hits.values()) < kills:
        target = PHASES[starts % len(PHASES)]
        code, starts = start(arguments, target, draw), starts + 1
        if list(runs.glob("*/model.safetensors")):
            code = 0  # complete: the kill came too late
        elif code == -signal.SIGKILL:
            hits[target] += 1
        elif code:
            sys.exit(code)
    if code != 0:
        code, starts = start(arguments, "", draw), starts + 1
    print(json.dumps({"hits": hits, "starts": starts, "code": code}))
    return code


def write(kills, seed, folders):
    """Children write checkpoints of 1 MB and say when each is done; what they said last must be there."""
    draw, path = random.Random(seed), Path(folders[0]) / "last.ckpt"
    found = {"torn": 0, "lost": 0, "while writing": 0}
    done = count = 0
    while count < kills or (found["while writing"] <= kills // 4 and count < 10 * kills):
        count += 1
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            step = done
            while True:
                step += 1
                content = {"state_dict": {"w": torch.full((250_000,), float(step))}, "global_step": step}
                AtomicCheckpointIO().save_checkpoint(content, path)
                os.write(writing, step.to_bytes(4))
        os.close(writing)
        done = int.from_bytes(os.read(reading, 4))
        time.sleep(draw.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while word := os.read(reading, 4):
            done = int.from_bytes(word)
        os.close(reading)
        try:
            loaded = read_checkpoint(path)
        except UserError:
            found["torn"] += 1
            continue
        step = loaded["global_step"]
        found["lost"] += step < done or not bool((loaded["state_dict"]["w"] == step).all())
        found["while writing"] += bool(atomic.sweep(path.parent))
        done = step
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick_runs.start()
    commands = [[]]
    for argument in sys.argv[1:]:
        commands += [[]] if argument == "then" else []
        commands[-1] += [] if argument == "then" else [argument]
    for mode, kills, seed, *rest in commands:
        if code := (write if mode == "writing" else train)(int(kills), int(seed), rest):
            sys.exit(code)
