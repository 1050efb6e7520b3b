"""Why a run stopped: the record that a signal leaves in its folder, which `train.py --status` reads.

torchrun and most launchers exit with 1 whatever the exit code of their processes. A script that should restart stopped
runs, but not failed ones, looks in the folder.
"""

from __future__ import annotations

from pathlib import Path

from .records import find, keep

STOPPED = "stopped.json"


def record(run: Path, exit_code: int, step: int | None = None) -> None:
    """Record in the run folder that a signal has stopped the run.

    Args:
        run: The run folder.
        exit_code: The command's: 75 or 130.
        step: The number of steps done; None after training.
    """
    keep(run / STOPPED, {"exit_code": exit_code, "step": step})


def clear(run: Path) -> None:
    """Remove the record: the run continues."""
    (run / STOPPED).unlink(missing_ok=True)


def exit_code(run: Path) -> int:
    """The exit code with which a signal stopped the run, 0 if none did."""
    return find(run / STOPPED, lambda found: int(found["exit_code"])) or 0
