"""The grids and samplers tuned to a model, kept with it (`tuned_files`)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from ..auto_grid import known_grids, tuning
from ..denoisers.denoiser import Denoiser
from .tuned_files import read_tuned, write_tuned

_TELL_EVERY = 5.0  # seconds
_KIND, _KEY = "grids", "log_snrs"


@contextlib.contextmanager
def kept_grids(denoiser: Denoiser, source: str) -> Iterator[None]:
    """While open, `auto_grid` knows the grids kept with a model; those made meanwhile are kept after it.

    So does `fitted_to` the numbers of its samplers.

    Args:
        denoiser: The model.
        source: Where, as `tuned_files`.
    """
    kept = _read(denoiser, source)
    grids = known_grids(denoiser)
    grids.update(kept)
    yield
    if grids != kept:
        # another process may have written meanwhile
        write_tuned(denoiser, source, _KIND, {_KEY: {**_read(denoiser, source), **grids}})


@contextlib.contextmanager
def told_tuning(seconds: float) -> Iterator[None]:
    """While open, what is tuned takes no longer than this, each, and stderr says every few seconds how far it is."""
    start = told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal start, told
        now = time.monotonic()
        if now - told > _TELL_EVERY:
            told = now
            print(f"tuning: {done / total:.0%} of at most {total} evaluations, {now - start:.0f} s", file=sys.stderr)

    with tuning(seconds, tell):
        yield


def _read(denoiser: Denoiser, source: str) -> dict[str, tuple[float, ...]]:
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError, OverflowError):
        found = read_tuned(denoiser, source, _KIND)[_KEY]
        return {key: tuple(float(value) for value in values) for key, values in found.items()}
    return {}
