"""What tests of training share."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """Run a program beside this file without a jaxtyped import, as a process of its own: code, stdout and stderr.

    By `forks.py`, which imports once for all of them.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command, pipes = [sys.executable, HERE / "forks.py"], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as server:

        def run(program, *arguments, folder=None, timeout=300, **more):
            said = [tmp_path_factory.mktemp("said") / name for name in ("out", "err")]
            now = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "DIFFUSION"))}
            asked = {
                "program": str(HERE / program), "arguments": [str(argument) for argument in arguments],
                "folder": str(folder or said[0].parent), "environment": {**now, "OMP_NUM_THREADS": "1", **more},
                "out": str(said[0]), "err": str(said[1]),
            }  # fmt: skip
            print(json.dumps(asked), file=server.stdin, flush=True)
            late = Timer(timeout, os.killpg, (int(server.stdout.readline()), signal.SIGKILL))
            late.start()
            code = int(server.stdout.readline())
            late.cancel()
            return code, *(path.read_text() for path in said)

        yield run
        server.stdin.close()
