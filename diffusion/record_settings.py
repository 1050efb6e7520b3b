"""The settings in a picture's record, which may come from anywhere: what they may be, as plain values.

Here their types alone are held to; whether a sampler of the name exists, or takes them, is found where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MOST_ROWS = 2**20  # samples that a picture can have been drawn with

_Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    """Whether this is a whole number that torch can hold, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bound(value: Any) -> bool:
    return _number(value) or value in (math.inf, -math.inf)


def _several(check: _Check, *counts: int) -> _Check:
    return lambda value: isinstance(value, list | tuple) and len(value) in counts and all(map(check, value))


def _any_of(*checks: _Check) -> _Check:
    return lambda value: any(check(value) for check in checks)


_MANY = range(1, 100_000)
_CHECKS: Mapping[str, _Check] = {
    "dtype": lambda value: value in ("float32", "float64"),
    **dict.fromkeys(("steps", "label"), is_whole),
    **dict.fromkeys(("guidance", "log_snr_end", "observation_noise", "strength", "tolerance"), _number),
    "eta": _any_of(_number, _text),
    "grid": _any_of(_text, _several(_number, *_MANY)),
    "numbers": _several(_number, *_MANY),
    "guidance_interval": _several(_bound, 2),
    "size": _any_of(is_whole, _several(is_whole, 2)),
    "interpolate": _several(_text, 2),
    "encode": _several(_text, *_MANY),
    **dict.fromkeys(
        (
            "sampler", "variance", "method", "guide", "classifier", "inpaint", "mask", "restore", "degradation",
            "posterior", "edit", "prior", "output",
        ),
        _text,
    ),
}  # fmt: skip
# What `sample` takes besides, which no command line sets.
_NEVER = ("n", "seed", "start", "batch_size", "noise", "callback", "progress", "moments", "model")
_FIELD = _any_of(_number, _text, lambda value: isinstance(value, bool))  # of a sampler, by --option


def are_settings(settings: Any) -> bool:
    """Whether these can be the settings of a draw."""
    return isinstance(settings, Mapping) and all(
        name not in _NEVER and (value is None or _CHECKS.get(name, _FIELD)(value)) for name, value in settings.items()
    )


def are_batches(batches: tuple[tuple[int, int], ...], count: int, index: int | None) -> bool:
    """Whether these are the batches of a picture of so many samples, or of the one of that index."""
    if not is_whole(count) or not (index is None or is_whole(index)):
        return False
    rows = sum(stop - first for first, stop in batches)
    in_order = all(0 <= first < stop for first, stop in batches)
    has_index = index is None or bool(batches and batches[0][0] <= index < batches[-1][1])
    return in_order and 0 < count <= rows <= MOST_ROWS and has_index
