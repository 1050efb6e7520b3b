"""The settings of a draw: each named once, with what its value can be and what takes it. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

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


def _several(check: _Check, counts: Container[int]) -> _Check:
    return lambda value: isinstance(value, list | tuple) and len(value) in counts and all(map(check, value))


def _any_of(*checks: _Check) -> _Check:
    return lambda value: any(check(value) for check in checks)


@dataclass(frozen=True)
class Setting:
    """A setting of a draw.

    Args:
        check: Whether a value, as a picture's record has it, can be one of it.
        option: Whether it is an option of sample.py that not every family of models takes.
        fitted: Whether the sampler `fitted` takes it: its numbers are for plain draws, with no image to begin at.
        figure: Whether it is an option of `quality`.
        image: Whether it names image files.
        control: Whether it wraps the denoiser or the sampler (`commands.sample.control`).
        field: Whether it is a field of the sampler.
        codes: Whether it is for the families that decode codes, which take nothing else.
    """

    check: _Check
    option: bool = True
    fitted: bool = False
    figure: bool = False
    image: bool = False
    control: bool = False
    field: bool = False
    codes: bool = False


_MANY = range(1, 100_000)
SETTINGS: Mapping[str, Setting] = {
    "sampler": Setting(_text, fitted=True, figure=True),
    "steps": Setting(is_whole, fitted=True, figure=True),
    "eta": Setting(_any_of(_number, _text), figure=True, field=True),
    "variance": Setting(_text, figure=True, field=True),
    "grid": Setting(_any_of(_text, _several(_number, _MANY)), figure=True),
    "log_snr_end": Setting(_number, figure=True),
    "label": Setting(is_whole, fitted=True, figure=True),
    "condition": Setting(_several(_text, range(1, 100)), fitted=True, image=True, control=True),
    "guidance": Setting(_number, fitted=True, figure=True),
    "tolerance": Setting(_number, figure=True, field=True),
    "method": Setting(_text, figure=True, field=True),
    "dtype": Setting(lambda value: value in ("float32", "float64"), fitted=True),
    "prior": Setting(_text, figure=True, codes=True),
    "output": Setting(_text, figure=True, codes=True),
    "guidance_interval": Setting(_several(_bound, (2,)), fitted=True),
    "guide": Setting(_text, fitted=True, control=True),
    "inpaint": Setting(_text, image=True, control=True),
    "mask": Setting(_text, image=True, control=True),
    "restore": Setting(_text, image=True, control=True),
    "degradation": Setting(_text, control=True),
    "posterior": Setting(_text, control=True),
    "observation_noise": Setting(_number, control=True),
    "edit": Setting(_text, image=True, control=True),
    "strength": Setting(_number, control=True),
    "size": Setting(_any_of(is_whole, _several(is_whole, (2,))), fitted=True),
    "classifier": Setting(_text, fitted=True, control=True),
    "fitted_start": Setting(lambda value: value in ("diagonal", "full"), fitted=True, control=True),
    "data": Setting(_text, fitted=True, control=True),
    "encode": Setting(_several(_text, _MANY), option=False, image=True),
    "interpolate": Setting(_several(_text, (2,)), option=False, image=True),
    "numbers": Setting(_several(_number, _MANY), option=False, field=True),  # of a fitted sampler
}
CONTROLS = tuple(name for name, setting in SETTINGS.items() if setting.control)
# What `sample` takes besides, which no command line sets.
_NEVER = ("n", "seed", "start", "batch_size", "noise", "callback", "progress", "moments", "model")
_FIELD = Setting(_any_of(_number, _text, lambda value: isinstance(value, bool)), field=True)  # by --option


def given_settings(options: Any, use: str = "option") -> dict[str, Any]:
    """The settings that a command line gives, of those of a use: `option` or `figure`."""
    named = {name: getattr(options, name) for name, setting in SETTINGS.items() if getattr(setting, use)}
    return {name: value for name, value in named.items() if value is not None}


def fields_of_sampler(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are fields of the sampler: those not known here are, too."""
    return {name: value for name, value in settings.items() if SETTINGS.get(name, _FIELD).field}


def are_settings(settings: Any) -> bool:
    """Whether these can be the settings of a draw."""
    return isinstance(settings, Mapping) and all(
        name not in _NEVER and (value is None or SETTINGS.get(name, _FIELD).check(value))
        for name, value in settings.items()
    )
