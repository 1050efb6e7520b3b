"""Runs `ranks.py PROGRAM ARGUMENT...` as ranks 0 and 1 of one launch, forked after the imports, which take longest."""

import os
import runpy
import signal
import socket
import sys

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from diffusion.training import fit  # noqa: F401  before the fork


def start(rank, port, program, arguments):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place["TORCHELASTIC_RUN_ID"] = "tests"  # by which Lightning knows torchrun
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    rank_zero_only.rank = rank  # Lightning has read it at its import
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def main(program, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = set()
    for rank in range(2):
        if not (pid := os.fork()):
            start(rank, port, program, arguments)
            return 0
        running.add(pid)
    code = 0
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status and not code:  # the other one would wait for it
            code = os.waitstatus_to_exitcode(status) % 256
            for other in running:
                os.kill(other, signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
