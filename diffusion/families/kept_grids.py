"""The grids and samplers tuned to a model, kept beside its file.

The file names the weights that they belong to; grids of other weights are passed over, and replaced.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from .. import atomic
from ..auto_grid import known_grids
from ..denoisers.denoiser import Denoiser
from .analytic_moments import weights_digest


@contextlib.contextmanager
def kept_grids(denoiser: Denoiser, source: str) -> Iterator[None]:
    """While open, `auto_grid` knows the grids beside a model's file; those made meanwhile are written there after it.

    So does `fitted_to` the numbers of its samplers.

    Args:
        denoiser: The model.
        source: Its file; one that does not exist (a shipped model's name) keeps its grids in memory, and so does a
            folder that cannot be written.
    """
    path, digest = Path(source).with_suffix(".grids.json"), weights_digest(denoiser)
    kept = _read(path, digest)
    grids = known_grids(denoiser)
    grids.update(kept)
    yield
    if Path(source).is_file() and grids != kept:
        merged = {**_read(path, digest), **grids}  # another process may have written meanwhile
        with contextlib.suppress(OSError):
            atomic.write_text(path, json.dumps({"weights": digest, "log_snrs": merged}, indent=1) + "\n")


def _read(path: Path, digest: str) -> dict[str, tuple[float, ...]]:
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError, AttributeError
    ):  # a damaged file is as good as none
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["weights"] == digest:
            return {key: tuple(float(value) for value in values) for key, values in found["log_snrs"].items()}
    return {}
