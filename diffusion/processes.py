"""Which of several processes this is, as its launcher (torchrun) says in the environment; no process talks to another.

Work that is cut into parts by index needs no more: each process takes the parts of its rank and puts them on the disk,
and one joins them when all are there.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among those of its launch.

    Args:
        rank: Its number among all.
        count: How many there are.
        local_rank: Its number among those of this machine.
        local_count: How many of them are on this machine, the same on each.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what all share."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """The number of machines."""
        return self.count // self.local_count


# One process, as most runs have.
ALONE = Processes()


def launched(environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes that the launcher tells of; one alone where there is none.

    Raises:
        UserError: For variables that are no numbers, or contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return ALONE
    texts = [environment.get(name, "") for name in names[:2]]
    texts += [environment.get(name, default) for name, default in zip(names[2:], texts, strict=True)]
    if not all(text.isascii() and text.isdigit() for text in texts):
        told = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        raise UserError(f"{told}: found in the environment; whole numbers are accepted, as torchrun sets them")
    found = Processes(*map(int, texts))
    if not (found.rank < found.count and found.local_rank < found.local_count and found.count % found.local_count == 0):
        told = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        raise UserError(f"{told}: found in the environment; these contradict each other")
    return found


def is_child(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another process of this command has started this one (`trainer.devices`), and ends when it does."""
    return launched(environment).count == 1 and environment.get("LOCAL_RANK", "0") != "0"


def is_helper() -> bool:
    """Whether another process than this one writes what all share."""
    return is_child() or not launched().is_main


def typed(command: str, environment: Mapping[str, str] = os.environ) -> str:
    """How the user types another command of this program (`train`, `sample`), by how this one was started.

    That is `uv run sample.py` after `uv run train.py`, and `python -m diffusion sample` after `python -m diffusion`.
    """
    script, python = Path(sys.argv[0]), Path(sys.executable).name or "python"
    start = "uv run" if "UV_RUN_RECURSION_DEPTH" in environment else python
    if script.name in ("train.py", "sample.py") and (other := script.with_name(f"{command}.py")).is_file():
        return f"{start} {shlex.quote(str(other))}"
    return f"{'uv run python' if start == 'uv run' else start} -m diffusion {command}"


def end_with_parent(seconds: float = 1.0) -> None:
    """End this process when its parent has died, though it waits for it in a collective, which no signal ends.

    Args:
        seconds: How often to look.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def end(exit_code: int) -> NoReturn:
    """End the program.

    One of several processes ends without destructors: those of the group's threads abort now and then (gloo, torch
    2.15: exit code -6 after all the work is done), and the launcher would take that for a failure. One that a signal
    has stopped ends so too: the scheduler's SIGKILL does not wait for W&B's.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" or exit_code in (75, 130):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
