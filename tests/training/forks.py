"""Runs programs in children that are forked after the imports, which take longer than most of what is tested.

A line of stdin is a JSON object: `program`, `arguments`, `folder` (the working one), `environment` (all of it), `out`
and `err` (files that get what is said). Answered are its process id, and when it has ended its exit code. `forked` of
conftest.py asks.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import torch

sys.path.insert(1, str(Path(__file__).parents[1]))  # what tests of other folders use, too

from diffusion.commands import app, evaluation, report  # noqa: F401  before the fork
from diffusion.commands.train import train  # noqa: F401
from diffusion.training import fit  # noqa: F401


def child(program, arguments, folder, environment, out, err):
    os.setpgid(0, 0)  # whoever gives up on it ends its children too
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as TMPDIR says now
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).parent)
    try:
        runpy.run_path(program, run_name="__main__")
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        if not (pid := os.fork()):
            code = child(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
