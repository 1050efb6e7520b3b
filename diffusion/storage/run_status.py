"""How a run came to its end: the record that a stop leaves in its folder, and `train.py --status`, which reads it.

torchrun and most launchers answer 1 whatever the exit code of their processes was. A script that is to start a stopped
run again, and not one that has failed, asks the folder.
"""

from __future__ import annotations

from pathlib import Path

from .records import find, keep

STOPPED = "stopped.json"


def record(run: Path, exit_code: int, step: int | None = None) -> None:
    """Say in the run folder that a signal has stopped it.

    Args:
        run: The run folder.
        exit_code: The command's: 75 or 130.
        step: The steps that are done; None after training.
    """
    keep(run / STOPPED, {"exit_code": exit_code, "step": step})


def clear(run: Path) -> None:
    """Take the record back: the run goes on."""
    (run / STOPPED).unlink(missing_ok=True)


def exit_code(run: Path) -> int:
    """The exit code of the stop that a run was left by, 0 where it was none."""
    return find(run / STOPPED, lambda found: int(found["exit_code"])) or 0
