"""Where what is tuned to a model, or estimated of it, is kept: beside its file, or for a shipped model in a cache.

Each file names the weights that it belongs to; one of other weights, or a damaged one, is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import atomic, runs
from ..denoisers.denoiser import Denoiser
from ..user_cache import user_cache


def read_tuned(denoiser: Denoiser, source: str, kind: str) -> dict[str, Any]:
    """What is kept of a kind, of this model's weights; with nothing kept, nothing.

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
        # what can be wrong with text that should be a JSON object, a hostile one included
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            text = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
            if text["weights"] == digest:
                found = _merged(found, text)
    return {key: value for key, value in found.items() if key != "weights"}


def write_tuned(denoiser: Denoiser, source: str, kind: str, values: Mapping[str, Any]) -> None:
    """Keep values of a kind; a place that cannot be written to is none."""
    if not source:
        return
    digest = weights_digest(denoiser)
    _, own = _places(source, kind, digest)
    if own is not None:
        with contextlib.suppress(OSError):
            own.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(own, json.dumps({"weights": digest, **values}, indent=1) + "\n")


def weights_digest(denoiser: Denoiser) -> str:
    """The SHA-256 of the weights, wherever they are kept."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _places(source: str, kind: str, digest: str) -> tuple[Path | None, Path | None]:
    """What comes with the package, and what is ours to write."""
    ending = f".{kind}.json"
    shipped = runs.shipped_file(source)
    if shipped is not None:
        kept = user_cache("tuned") / f"{shipped.stem}-{digest[:16]}{ending}"
        return shipped.with_suffix(ending), kept
    return None, Path(source).with_suffix(ending) if Path(source).is_file() else None


def _merged(known: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both; of two dictionaries under one key the entries of both."""
    both = {
        key: {**known[key], **value} if isinstance(value, dict) and isinstance(known.get(key), dict) else value
        for key, value in more.items()
    }
    return {**known, **both}
