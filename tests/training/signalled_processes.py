"""Two processes that receive signals, as a program for `ranks.py`: `signalled_processes.py FOLDER STRATEGY SCENE...`.

A scene is `place:who:signal`: in the middle of which work (training, validation, sampling; or a number of seconds after
the first step) rank 0 sends which signal (TERM, INT) to whom (0, 1, or all). Each scene trains a run that is cut off
so, then continues it; `whole` is left alone. A process prints a line of JSON a scene, with its exit code and the
seconds from the signal to the end of `fit`.
"""

import json
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from quick_runs import quick_runs
from tiny_configs import toy_config

from diffusion.models import DiffusionModel
from diffusion.networks import MLP
from diffusion.processes import end, launched
from diffusion.training.fit import fit
from diffusion.training.modules.denoiser import DenoiserModule

OPTIONS = (
    "trainer.steps=12", "trainer.validate_every=4", "trainer.sample_every=6", "evaluation.batch_size=8",
    "evaluation.enabled=false", "sampling.sampler=ode",
)  # fmt: skip
SLOWED = 0.2  # seconds an evaluation of the network takes in a grid, so that nobody waits for its end
PLACES = {"training": (DenoiserModule, "training_step", 3), "validation": (DenoiserModule, "validation_step", 2)}


@contextmanager
def signals(place, who, name, pids):
    """Signals are sent in the block as the scene says; gives a list that gets the time of it."""
    number = signal.Signals[f"SIG{name}"]
    targets = pids if who == "all" else [pids[int(who)]]
    sent = []

    def send():
        sent.append(time.time())
        for pid in targets:
            os.kill(pid, number)

    def at_call(original, call):
        count = [0]

        def called(*args, **kwargs):
            count[0] += 1
            if count[0] == call:
                send()
            return original(*args, **kwargs)

        return called

    if place == "sampling":
        sample, forward = DiffusionModel.sample, MLP.forward

        def slow(*args, **kwargs):
            if not sent:
                send()
            time.sleep(SLOWED)
            return forward(*args, **kwargs)

        def sample_slowly(*args, **kwargs):
            with mock.patch.object(MLP, "forward", slow):
                return sample(*args, **kwargs)

        patch = mock.patch.object(DiffusionModel, "sample", sample_slowly)
    elif place in PLACES:
        owner, method, call = PLACES[place]
        patch = mock.patch.object(owner, method, at_call(getattr(owner, method), call))
    else:
        original = DenoiserModule.training_step

        def first_step(*args):
            if not timer.is_alive() and not sent and not timer.finished.is_set():
                timer.start()
            return original(*args)

        timer = threading.Timer(float(place), send)
        patch = mock.patch.object(DenoiserModule, "training_step", first_step)
    with patch if launched().is_main else nullcontext():
        yield sent


def everywhere(value):
    """The values of all processes."""
    found = [None] * launched().count
    dist.all_gather_object(found, value)
    return found


def main(folder, strategy, scenes):
    torch.set_num_threads(1)
    quick_runs.start()
    options = (*OPTIONS, f"trainer.strategy={strategy}")
    fit(toy_config(folder, *options, "name=whole"))
    pids = everywhere(os.getpid())
    for number, scene in enumerate(scenes):
        config = toy_config(folder, *options, f"name=scene-{number}")
        with signals(*scene.split(":"), pids) as sent:
            cut = fit(config)
        ended = time.time()
        sent = everywhere(sent)[0]
        told = {"scene": scene, "rank": launched().rank, "code": cut.exit_code, "run": cut.run.name}
        line = json.dumps(told | {"seconds": ended - sent[0] if sent else None})
        os.write(sys.stdout.fileno(), f"{line}\n".encode())  # in one write: both processes write to one pipe
        if cut.exit_code:
            fit(config, cut.run)


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    end(0)
