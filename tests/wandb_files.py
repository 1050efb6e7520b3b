"""The files of an offline W&B run; its writing process may be behind its answer where the machine is busy."""

import time
from pathlib import Path


def written(folder: Path, pattern: str, seconds: float = 20.0) -> list[Path]:
    """The files of a pattern, as soon as there are any."""
    end = time.monotonic() + seconds
    while not (found := sorted(folder.glob(pattern))) and time.monotonic() < end:
        time.sleep(0.1)
    return found
