"""The conventions of networks trained elsewhere: the path, the prediction, the time, the range of the data.

The names are declared here once. `Convention.neighbours` are the conventions that one mistake leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import UserError, choose, did_you_mean, in_one_line
from ..numerics.arrays import REFUSED, as_tensor, described
from ..schedules import DDPM, EDM, VE, VP, Cosine, Functions, Rectified, Schedule, SongVE, SubVP, Table


@dataclass(frozen=True)
class Path:
    """A path in somebody else's notation.

    Args:
        schedule: The path, data at t = 0.
        backwards: Whether their time runs the other way, data at t = 1.
        first: The number of the level at t = 1 / T.
    """

    schedule: Schedule
    backwards: bool = False
    first: int = 0


# From a name to its schedule and whether its time runs backwards.
PATHS: dict[str, tuple[Callable[..., Schedule], bool]] = {
    "ddpm": (DDPM, False),
    "vp": (VP, False),
    "sub-vp": (SubVP, False),
    "cosine": (Cosine, False),
    "ve": (VE, False),
    "ve-song": (SongVE, False),
    "edm": (EDM, False),
    "flow": (Rectified, False),
    "flow-to-data": (Rectified, True),
}
# From a name to the prediction of `predictions` and its sign.
PREDICTS = {
    "eps": ("eps", 1.0),
    "-eps": ("eps", -1.0),
    "x": ("x", 1.0),
    "v": ("v", 1.0),
    "-v": ("v", -1.0),
    "score": ("score", 1.0),
    "velocity": ("velocity", 1.0),
    "-velocity": ("velocity", -1.0),
    "edm": ("edm", 1.0),
}


def _index(path: Path, t: Tensor) -> Tensor:
    return t * _steps(path) - 1.0 + path.first


def _steps(path: Path) -> int:
    steps = getattr(path.schedule, "steps", None)
    if not isinstance(steps, int):
        raise UserError(
            f"time: found an index, and the path {path.schedule} has no numbered levels; accepted: "
            f"{', '.join(name for name in TIMES if name not in INDICES)}, or a function of t"
        )
    return steps


def _own(path: Path, t: Tensor) -> Tensor:
    return 1.0 - t if path.backwards else t


def _log_sigma(path: Path, t: Tensor) -> Tensor:
    return -0.5 * path.schedule.log_snr(t)


# The time that a network takes at a time t of our own, in which data are at 0.
TIMES: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "index": _index,
    "index-rounded": lambda path, t: _index(path, t).round().clamp(path.first, path.first + _steps(path) - 1).long(),
    "i/T": lambda path, t: _index(path, t) / _steps(path),
    "t": _own,
    "1-t": lambda path, t: 1.0 - _own(path, t),
    "999t": lambda path, t: 999.0 * _own(path, t),
    "1000t": lambda path, t: 1000.0 * _own(path, t),
    "sigma": lambda path, t: _log_sigma(path, t).exp(),
    "log-sigma": _log_sigma,
    "log-sigma/4": lambda path, t: 0.25 * _log_sigma(path, t),
    "log-snr": lambda path, t: path.schedule.log_snr(t),
    "log-snr/4": lambda path, t: 0.25 * path.schedule.log_snr(t),
}
SHIFTED = "an index"  # begins the name of a convention whose index is another
INDICES = ("index", "index-rounded", "i/T")
# What the lowest and the highest level may be.
RANGES = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (0.0, 255.0))
DEFAULT_RANGE = RANGES[0]


def path_of(given: Any) -> Path:
    """A path from its name, a schedule, a table, two functions, or a dictionary: a name with options, or a table.

    Raises:
        UserError: For anything else.
    """
    if isinstance(given, Path):
        return given
    if isinstance(given, Schedule):
        return Path(given)
    if isinstance(given, str):
        make, backwards = PATHS[choose("path", given, PATHS)]
        return Path(make(), backwards)
    if isinstance(given, Mapping):
        return _of_mapping(dict(given))
    if isinstance(given, tuple | list) and any(map(callable, given)):
        if len(given) != 2 or not all(map(callable, given)):
            raise UserError(f"path: found {', '.join(type(one).__name__ for one in given)}; needs two functions")
        return _of_functions(*given)
    if isinstance(given, Tensor | tuple | list) or hasattr(given, "__array__"):
        values = None
        with suppress(*REFUSED):
            values = as_tensor(given)
        if values is not None:
            return _of_mapping({_kind_of_table(values): given})  # a list keeps its float64
    raise UserError(
        f"path: found {described(given)}; accepted: {', '.join(PATHS)}, a schedule, a table of betas or "
        "alphas_cumprod, or two functions (alpha, sigma)"
    )


def _kind_of_table(values: Tensor) -> str:
    """Whether a table without a name is one of betas or of alphas_cumprod, whose first level is all but clean data.

    Raises:
        UserError: For one that may be either, or alphas = 1 - betas.
    """
    if values.ndim != 1 or len(values) < 2 or not bool(values[0] > values[-1]) or bool((values < 0.5).all()):
        return "betas"
    # alphas = 1 - betas of a cosine are near 1 for longer
    if bool(values[0] >= 0.9) and bool(values[-1] < 0.5) and bool(values[len(values) // 2] < 0.9):
        return "alphas_cumprod"
    raise UserError(
        f"path: found a table that falls from {float(values[0]):.4g} to {float(values[-1]):.4g}, which may be betas, "
        'alphas or alphas_cumprod; say which: path={"betas": table} or path={"alphas_cumprod": table}'
    )


def _of_mapping(given: dict[str, Any]) -> Path:
    tables = {"betas": Table.of_betas, "alphas_cumprod": Table.of_alphas_cumprod}
    if "name" not in given:
        if len(given) != 1:
            raise UserError(f"path: found {', '.join(map(str, given))}; needs a name with its options, or one table")
        ((kind, table),) = given.items()
        made = tables[choose("path", kind, tables)](table)
        return Path(made, first=len(table) - made.steps)  # clean data, where the table has them, are level 0
    make, backwards = PATHS[choose("path", given.pop("name"), PATHS)]
    try:
        return Path(make(**given), backwards)
    except TypeError as error:
        options = [field.name for field in fields(cast(Any, make))]
        other = [str(key) for key in given if key not in options]
        near = did_you_mean(other[0], options) if other else f" ({in_one_line(error)})"
        raise UserError(
            f"path: {make.__name__} does not take {', '.join(other or map(str, given))}; "
            f"accepted: {', '.join(options)}.{near}"
        ) from error


def _of_functions(alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor]) -> Path:
    """The data are where alpha / sigma is larger."""
    ends = torch.tensor([0.1, 0.9], dtype=torch.float64)
    try:
        ratio = torch.as_tensor(alpha(ends)) / torch.as_tensor(sigma(ends))
        backwards = bool(ratio[0] < ratio[1])
    except Exception as error:  # of functions that are the user's
        reason = str(error).splitlines()[0][:100]
        raise UserError(f"path: the functions (alpha, sigma) failed on a tensor of times ({reason})") from error
    if backwards:
        return Path(Functions(lambda t: alpha(1.0 - t), lambda t: sigma(1.0 - t)), True)
    return Path(Functions(alpha, sigma))


@dataclass(frozen=True)
class Convention:
    """How a network is to be called, and what it answers.

    Args:
        path: The path of the data as the network sees them.
        predicts: A name of `PREDICTS`.
        time: A name of `TIMES`, or a function of the path's own time, a tensor of shape (B,), to one of that shape.
        scaled: Whether the network sees c_in x_t rather than x_t; a network that predicts `edm` always does.
        sigma_data: The deviation of the data as the network sees them, in c_in and in EDM's skip connection.
        levels: The number of levels; None for continuous data.
        data_range: The values of the lowest and the highest level.
        shift: What is added to the index.
    """

    path: Path
    predicts: str
    time: str | Callable[[Tensor], Tensor]
    scaled: bool = False
    sigma_data: float = 0.5
    levels: int | None = None
    data_range: tuple[float, float] = DEFAULT_RANGE
    shift: int = 0

    def __post_init__(self):
        choose("predicts", self.predicts, PREDICTS)
        if not callable(self.time):
            choose("time", self.time, TIMES)
        if not self.data_range[0] < self.data_range[1]:
            raise UserError(f"data_range: found {self.data_range}; needs the lowest and the highest value")
        try:  # refused here, before the network is called
            self.network_time(torch.tensor([0.25, 0.75], dtype=torch.float64))
        except UserError:
            raise
        except Exception as error:  # of a function that is the user's
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise UserError(f"time: the function failed on a tensor of times of shape (B,) ({reason})") from error

    @property
    def takes_scaled(self) -> bool:
        """Whether the network sees c_in x_t."""
        return self.scaled or self.predicts == "edm"

    @property
    def units(self) -> tuple[float, float]:
        """(a, b) of y = a x + b: what the network sees of x, whose bins fill [-1, 1]. The identity without levels."""
        if self.levels is None:
            return 1.0, 0.0
        low, high = self.data_range
        return 0.5 * (high - low) / (1.0 - 1.0 / self.levels), 0.5 * (low + high)

    def network_time(self, t: Tensor) -> Tensor:
        """The times as the network takes them, float64, or int64 for a rounded index."""
        if callable(self.time):
            own = _own(self.path, t).reshape(-1)
            found = torch.as_tensor(self.time(own))
            if found.shape != own.shape or found.is_complex() or found.dtype == torch.bool:
                raise UserError(
                    f"time: the function returned {found.dtype} of shape {tuple(found.shape)} for times of shape "
                    f"{tuple(own.shape)}; needs one real number for each"
                )
            return found.reshape(t.shape)
        time = TIMES[self.time](self.path, t)
        return time + self.shift if self.shift else time

    def neighbours(self) -> Iterator[tuple[str, Convention]]:
        """Conventions in which one thing is another, and which that is, as an argument of `adopt` or in words."""
        yield from self._of("predicts", PREDICTS)
        yield from self._of("time", TIMES)
        if self.time in INDICES:
            for shift in {self.shift + 1, self.shift - 1} - {0}:
                by = "one" if abs(shift) == 1 else abs(shift)
                yield f"{SHIFTED} {by} {'higher' if shift > 0 else 'lower'}", replace(self, shift=shift)
        if self.predicts != "edm":
            yield f"scaled={not self.scaled}", replace(self, scaled=not self.scaled)
        if self.levels is not None:
            for ends in RANGES:
                if ends != self.data_range:
                    yield f"data_range=({ends[0]:g}, {ends[1]:g})", replace(self, data_range=ends)
        yield from self._of_paths()

    def _of(self, field: str, names: Mapping[str, Any]) -> Iterator[tuple[str, Convention]]:
        for name in names:
            if name != getattr(self, field):
                try:
                    yield f"{field}='{name}'", replace(self, **{field: name})
                except UserError:  # a time that the path does not have
                    continue

    def _of_paths(self) -> Iterator[tuple[str, Convention]]:
        own = self.path.schedule
        for other in _other_betas(own) if isinstance(own, DDPM) else ():
            said = {"name": "ddpm", "betas": other.betas, **_changed(other)}
            yield f"path={said}", replace(self, path=replace(self.path, schedule=other))
        for name, (make, backwards) in PATHS.items():
            made = Path(make(), backwards)
            if (type(own), self.path.backwards) != (type(made.schedule), backwards):
                try:
                    yield f"path='{name}'", replace(self, path=made)
                except UserError:
                    continue


def _other_betas(own: DDPM) -> Iterator[DDPM]:
    """Of as many levels: linear betas as they are, linear ones scaled by 1000 / T (2102.09672's code), cosine."""
    for scale in {1.0, 1000 / own.steps}:
        start, end = DDPM.beta_start * scale, DDPM.beta_end * scale
        if end < 1.0 and (other := DDPM(own.steps, "linear", start, end)) != own:
            yield other
    if own.betas != "cosine":
        yield DDPM(own.steps, "cosine")


def _changed(schedule: DDPM) -> dict[str, Any]:
    """The fields that are not as they are by default."""
    values = {field.name: (getattr(schedule, field.name), field.default) for field in fields(schedule)}
    return {name: value for name, (value, default) in values.items() if value != default}
