"""Storage for what is tuned to a model or estimated from it: next to its file, or for a shipped model in a cache.

Each file names the weights it belongs to; a file for other weights, or a damaged one, is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..denoisers.denoiser import Denoiser
from ..samplers import ExponentialSDE, Moments, estimate_moments
from ..sampling.auto_grid import known_grids, tuning
from ..sampling.sample import sample
from ..storage import runs
from ..storage.records import DAMAGED, find, keep
from ..storage.runs import user_cache


def read_tuned(denoiser: Denoiser, source: str, kind: str) -> dict[str, Any]:
    """The stored values of a kind for this model's weights; empty if there are none.

    Args:
        denoiser: The model.
        source: Its file, `pretrained:NAME`, or "" for a model whose things are kept in memory alone.
        kind: `grids`, `moments`.
    """
    if not source:
        return {}
    digest = weights_digest(denoiser)
    shipped, own = _places(source, kind, digest)
    found: dict[str, Any] = {}
    for path in (shipped, own):
        known = None if path is None else find(path, dict)
        if known is not None and known.get("weights") == digest:
            found = _merged(found, known)
    return {key: value for key, value in found.items() if key != "weights"}


def write_tuned(denoiser: Denoiser, source: str, kind: str, values: Mapping[str, Any]) -> None:
    """Store values of a kind; a place that cannot be written is skipped."""
    if not source:
        return
    digest = weights_digest(denoiser)
    _, own = _places(source, kind, digest)
    if own is not None:
        with contextlib.suppress(OSError):
            keep(own, {"weights": digest, **values})


def weights_digest(denoiser: Denoiser) -> str:
    """The SHA-256 of the weights alone, since tuning results hold for every file with these weights."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _places(source: str, kind: str, digest: str) -> tuple[Path | None, Path | None]:
    """The file shipped with the package, and the one to write."""
    ending = f".{kind}.json"
    shipped = runs.shipped_file(source)
    if shipped is not None:
        kept = user_cache("tuned") / f"{shipped.stem}-{digest[:16]}{ending}"
        return shipped.with_suffix(ending), kept
    return None, Path(source).with_suffix(ending) if Path(source).is_file() else None


def _merged(known: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both merged; dictionaries under the same key are merged in turn."""
    both = {
        key: {**known[key], **value} if isinstance(value, dict) and isinstance(known.get(key), dict) else value
        for key, value in more.items()
    }
    return {**known, **both}


_TELL_EVERY = 5.0  # seconds
_GRIDS, _MOMENTS, _KEY = "grids", "moments", "log_snrs"


@contextlib.contextmanager
def kept_grids(denoiser: Denoiser, source: str) -> Iterator[None]:
    """Within the block, `auto_grid` uses the grids stored for a model, and new ones are stored at its end.

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
        write_tuned(denoiser, source, _GRIDS, {_KEY: {**_read(denoiser, source), **grids}})


@contextlib.contextmanager
def reported_tuning(seconds: float) -> Iterator[None]:
    """Within the block, each tuning is limited to this time, and progress is reported on stderr every few seconds."""
    start = reported = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal start, reported
        now = time.monotonic()
        if now - reported > _TELL_EVERY:
            reported = now
            print(f"tuning: {done / total:.0%} of at most {total} evaluations, {now - start:.0f} s", file=sys.stderr)

    with tuning(seconds, tell):
        yield


def _read(denoiser: Denoiser, source: str) -> dict[str, tuple[float, ...]]:
    with contextlib.suppress(*DAMAGED):
        found = read_tuned(denoiser, source, _GRIDS)[_KEY]
        return {key: tuple(float(value) for value in values) for key, values in found.items()}
    return {}


_SAMPLES, _STEPS = 64, 25


def moments_of(denoiser: Denoiser, source: str, error_bound: float) -> Moments:
    """The moments of a model as they are kept, or estimated, and then kept.

    Args:
        denoiser: The model.
        source: Where, as `tuned_files`.
        error_bound: As `Moments`.
    """
    with contextlib.suppress(*DAMAGED):
        found = read_tuned(denoiser, source, _MOMENTS)
        return Moments(tuple(found["log_snrs"]), tuple(found["values"]), error_bound)
    x = sample(denoiser, _SAMPLES, ExponentialSDE(), _STEPS, seed=2**31)
    moments = estimate_moments(denoiser, x, error_bound)
    write_tuned(denoiser, source, _MOMENTS, {"log_snrs": moments.log_snrs, "values": moments.values})
    return moments
