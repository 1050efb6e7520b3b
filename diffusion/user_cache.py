"""Where things are kept that cost time to make, belong to no run, and can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from .storage.paths import named_path


def user_cache(kind: str) -> Path:
    """The folder of a kind of things in $XDG_CACHE_HOME/diffusion, by default ~/.cache/diffusion; it may not exist."""
    return named_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "diffusion" / kind
