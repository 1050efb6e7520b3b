"""Trains `train.py ARGUMENT...`, with `runs=` in the folder that each line of stdin names, and answers with a line of
JSON: the exit code and what was said. Each in a child that is forked after the imports, so that a start takes no time.
"""

import json
import os
import sys
import tempfile

import torch
from quick_runs import few_points

from diffusion.commands import app, evaluation, report  # noqa: F401  before the fork, for speed
from diffusion.commands.train import train as training
from diffusion.training import fit  # noqa: F401


def train(arguments):
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            os._exit(app.command(training.train, arguments))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return {"code": code, "said": said.read().decode()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    few_points.start()
    for line in sys.stdin:
        print(json.dumps(train([*sys.argv[1:], f"runs={line.strip()}"])), flush=True)
