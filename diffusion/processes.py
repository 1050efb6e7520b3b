"""Which of several processes this is, from the environment set by the launcher (torchrun), without communication.

That is enough for work divided by index: each process writes the parts of its rank to disk, and the main process joins
them when all are there.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .errors import BY_UV, UserError


def waiting_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait for one another, where the user has not said what they do.

    By default they spin, and on a machine with another job each waits for one that is not running: training on two
    threads was up to ten times slower (docs/benchmarks.md). The policy is read when torch is loaded: then it is left.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def cleans_up_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM ends the program as an exit does, so that what is half written is removed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # which alone takes signals
        yield
        return
    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@dataclass(frozen=True)
class Processes:
    """This process among those launched together.

    Args:
        rank: Its number among all processes.
        count: The number of processes.
        local_rank: Its number among the processes on this machine.
        local_count: The number of processes on each machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the shared files."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """The number of machines."""
        return self.count // self.local_count


# A single process, the usual case.
ALONE = Processes()


def launched(environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes according to the launcher; a single one without a launcher.

    Raises:
        UserError: For variables that are not numbers or contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return ALONE
    texts = [environment.get(name, "") for name in names[:2]]
    texts += [environment.get(name, default) for name, default in zip(names[2:], texts, strict=True)]
    found_text = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
    if not all(text.isascii() and text.isdigit() for text in texts):
        raise UserError(f"{found_text}: found in the environment; whole numbers are accepted, as torchrun sets them")
    found = Processes(*map(int, texts))
    if not (found.rank < found.count and found.local_rank < found.local_count and found.count % found.local_count == 0):
        raise UserError(f"{found_text}: found in the environment; these contradict each other")
    return found


def is_child() -> bool:
    """Whether this process was started by another one of the same command (`trainer.devices`), and ends with it."""
    return launched().count == 1 and os.environ.get("LOCAL_RANK", "0") != "0"


def is_helper() -> bool:
    """Whether a different process writes the shared files."""
    return is_child() or not launched().is_main


def by_uv(environment: Mapping[str, str] = os.environ) -> str:
    """What is typed in front of other programs of this environment: `uv run ` where uv started this one."""
    return "uv run " if BY_UV in environment else ""


def typed(command: str, environment: Mapping[str, str] = os.environ) -> str:
    """How to type another command of this program (`train`, `sample`), given how this one was started.

    That is `uv run sample.py` after `uv run train.py`, and `python -m diffusion sample` after `python -m diffusion`.
    """
    script, python = Path(sys.argv[0]), Path(sys.executable).name or "python"
    start = by_uv(environment).rstrip() or python
    if script.name in ("train.py", "sample.py") and (other := script.with_name(f"{command}.py")).is_file():
        return f"{start} {shlex.quote(str(other))}"
    return f"{'uv run python' if start == 'uv run' else start} -m diffusion {command}"


def bar_size() -> tuple[int | None, int | None]:
    """Columns and rows for a bar of tqdm, which shows nothing in a terminal that does not know its own (that of
    `docker exec -t`, of `script`); None, so that it looks itself, in others.
    """
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # no terminal
        return None, None
    return (None, None) if columns and rows else (columns or 80, rows or 24)


def end_with_parent() -> None:
    """End this process when its parent has died, even while it waits in a collective operation, deaf to signals."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def end(exit_code: int) -> NoReturn:
    """End the program.

    One of several processes exits without running destructors: those of the process group's threads sometimes abort
    (gloo, torch 2.15: exit code -6 after all work is done), which the launcher would take for a failure. A process
    stopped by a signal does the same: the scheduler's SIGKILL does not wait for W&B's destructors.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" or exit_code in (75, 130):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
