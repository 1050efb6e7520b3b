"""The contract of a sampler, and the loop.

A sampler integrates over the pairs (t, s) of a grid, from noise to data, and knows nothing about networks or training.
A grid that ends in exactly 0 ends at clean data: every solver's step to sigma = 0 is x = E[x | x_t].

Most solvers with one evaluation per step are linear: x_s = a x_t + b x_hat + c z. Such a solver is defined by its
formula for (a, b, c), computed once for the whole grid, in float64; a step costs two or three full-size operations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoisers.denoiser import Denoiser
from ..denoisers.given import field_types
from ..denoisers.predictions import linear
from ..errors import UserError
from ..numerics.arrays import REFUSED, as_tensor, described
from ..numerics.random import Noise
from ..schedules import Schedule

# Called after each step with (step, time reached, state, x_hat of the step or None if the solver has none).
Callback = Callable[[int, float, Tensor, Tensor | None], None]

# The randomness of a sampler: from the step to standard normals of the shape of the state (`numerics.random.Noise`).
NoiseFunction = Callable[[int], Tensor]


def times_of(schedule: Schedule, grid: Tensor) -> Tensor:
    """The times of a grid at which the solver acts: without the final 0, and within the path."""
    grid = grid.detach().to(device="cpu", dtype=torch.float64)
    # A path may be singular at t = 1: a grid that starts beyond its end starts at its end.
    return (grid[:-1] if bool(grid[-1] == 0.0) else grid).clamp(max=schedule.t_max)


def check_fields(sampler: Any) -> None:
    """Refuse settings of the wrong type: text for numbers, fractions for integers, values that are not finite."""
    for name, kind in field_types(type(sampler)).items():
        value = getattr(sampler, name)
        if kind == int | None:
            if value is None:
                continue
            kind = int
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if kind is int and not (isinstance(value, Integral) and is_number):
            raise UserError(f"{name}: found {value!r}; must be a whole number")
        if name == "steps" and value < 1:
            raise UserError(f"steps: found {value}; must be at least 1")
        if kind is float and not (is_number and not math.isnan(float(value))):
            raise UserError(f"{name}: found {value!r}; must be a number")
        if kind is bool and not isinstance(value, bool):
            raise UserError(f"{name}: found {value!r}; must be true or false")


def checked_grid(schedule: Schedule, grid: Any) -> Tensor:
    """A grid as float64 on the CPU.

    Args:
        schedule: The path.
        grid: A tensor, an array or a list of times.

    Raises:
        UserError: For anything but two or more decreasing numbers within the path.
    """
    try:
        times = as_tensor(grid, torch.float64).detach().cpu()
    except REFUSED:
        raise UserError(f"grid: found {described(grid)}; needs two or more decreasing times, or a name") from None
    found = f"found {times.flatten().tolist()[:8]}"
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise UserError(f"grid: needs two or more strictly decreasing times; {found} of shape {tuple(times.shape)}")
    t_max = schedule.t_max
    if not (bool(times[-1] >= 0) and bool(times[0] <= 1)) or bool(times[1] >= t_max):
        raise UserError(f"grid: needs times from 1 (or t_max = {t_max:.6g}) down to 0; {found}")
    return times


class Sampler(ABC):
    """A solver from noise to data. A concrete sampler is a frozen dataclass of its settings, without state.

    Declared facts, measured by tests: `order`, the order of convergence in the largest step (of the trajectory for a
    deterministic sampler, of the law for a stochastic one), `is_stochastic`, and the evaluations of the denoiser: a
    grid of N intervals that ends at clean data costs (N - 1) evaluations_per_step + starting_evaluations + 1.

    Attributes:
        steps: The intervals of the grid that `diffusion.sample` makes for it; None for those of the call, or
            `default_steps`.
        is_adaptive: Whether it chooses its own steps between the ends of the grid.
        evaluations_per_step: The evaluations of the denoiser per step; None if it chooses its own steps.
        starting_evaluations: The additional evaluations of the first step.
        default_steps: The number of steps if neither the sampler nor the call specifies it.
    """

    steps: int | None = None
    is_adaptive: ClassVar[bool] = False
    evaluations_per_step: ClassVar[int | None] = 1
    starting_evaluations: ClassVar[int] = 0
    default_steps: ClassVar[int] = 50

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the solver by name, without its steps, which belong to the grid."""
        return {name: value for name, value in vars(self).items() if name != "steps"}

    @property
    @abstractmethod
    def order(self) -> int:
        """The order of convergence."""

    @property
    @abstractmethod
    def is_stochastic(self) -> bool:
        """Whether the sampler draws noise between steps."""

    @property
    def default_grid(self) -> str:
        """The name of the grid used if none is requested (`schedules.time_grid`): the best as measured.

        `cauchy` places its steps where x_hat changes, with long ones elsewhere; `shifted` does so by the dimension of
        the data. First-order solvers gain from the one, those in velocity variables from the other on all data; with
        noise, or polynomials in other variables, long steps hurt.
        """
        return "log-snr" if self.is_stochastic or self.order > 1 else "cauchy"

    def own_grid(self, schedule: Schedule) -> Tensor | None:
        """The only grid that the sampler supports, from noise to clean data; None if it supports any."""
        return None

    def noise_along(self, noise: Noise, schedule: Schedule, grid: Tensor) -> NoiseFunction:
        """The noise to pass to `sample`: here independent normals for each step.

        An SDE sampler has the increments of one Brownian path instead, which every grid divides into its steps.
        """
        return noise

    def sample(
        self,
        denoiser: Denoiser,
        x_1: Float[Tensor, " b *dims"],
        grid: Float[Tensor, " steps"],
        noise: NoiseFunction | None = None,
        cond: Any = None,
        callback: Callback | None = None,
    ) -> Float[Tensor, " b *dims"]:
        """Integrate over the grid from x_1.

        Args:
            denoiser: Computes E[x | x_t] on its schedule.
            x_1: The state at the grid's first time, shape (B, *shape), float32 or float64.
            grid: Decreasing times, shape (steps + 1,); a last entry of exactly 0 means clean data.
            noise: Standard normals for a step; needed by stochastic samplers only.
            cond: Class labels, shape (B,), or None.
            callback: Called after each step.

        Returns:
            The state at the grid's last time, shape (B, *shape).

        Raises:
            UserError: For a grid that does not decrease, or a stochastic sampler without noise.
        """
        grid = checked_grid(denoiser.schedule, grid)
        if self.is_stochastic and noise is None:
            raise UserError(f"noise: {type(self).__name__} draws noise; pass a function from the step to normals")
        to_datum = bool(grid[-1] == 0.0)
        times = times_of(denoiser.schedule, grid)
        x = self.integrate(denoiser, x_1, times, noise, cond, callback) if len(times) > 1 else x_1
        if to_datum:
            x = denoiser(x, times[-1], cond)
            if callback is not None:
                callback(len(grid) - 2, 0.0, x, x)
        return x

    @abstractmethod
    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        noise: NoiseFunction | None,
        cond: Any,
        callback: Callback | None,
    ) -> Tensor:
        """Integrate over two or more times, none of them 0; arguments as `sample`."""


@dataclass(frozen=True)
class WithSteps:
    """The setting common to the samplers of this package: `DDIM(steps=50)`.

    Args:
        steps: As `Sampler.steps`. Not part of the solver, nor of its `repr`, by which grids are cached.
    """

    steps: int | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self):
        check_fields(self)


def is_value(thing: object) -> bool:
    """Whether equality to another object implies the same behaviour, now and later.

    That holds for plain values and for this package's frozen dataclasses of them. A user's own class may be mutable, or
    have settings that its comparison ignores: nothing may be cached for it.
    """
    if isinstance(thing, tuple):
        return all(map(is_value, thing))
    if is_dataclass(thing) and not isinstance(thing, type):
        kind = type(thing)
        ours = kind.__module__.split(".")[0] == __name__.split(".")[0]
        settings: Any = kind.__dict__.get("__dataclass_params__")  # of the class itself, not inherited
        return (
            ours
            and settings is not None
            and settings.frozen
            and settings.eq
            and all(is_value(getattr(thing, field.name)) for field in fields(thing))
        )
    return thing is None or type(thing) in (bool, int, float, str)


def remembered(sampler: RowSampler, schedule: Schedule, times: Tensor) -> list[Any]:
    """The rows of a grid, cached across batches for a sampler and a schedule that are values."""
    if is_value(sampler) and is_value(schedule):
        return _remembered(sampler, schedule, tuple(times.tolist()))
    return sampler.rows(schedule, times)


@lru_cache(maxsize=16)
def _remembered(sampler: RowSampler, schedule: Schedule, times: tuple[float, ...]) -> list[Any]:
    with torch.inference_mode(False):  # the rows may also be used where gradients are taken
        return sampler.rows(schedule, torch.tensor(times, dtype=torch.float64))


class RowSampler(Sampler):
    """A sampler whose loop reads one row of numbers per step, or part of a step, precomputed from the path."""

    @abstractmethod
    def rows(self, schedule: Schedule, times: Tensor) -> list[Any]:
        """The rows of a grid, computed in float64."""


@dataclass(frozen=True)
class Coefficients:
    """x_s = from_x_t x_t + from_x x_hat + fresh z for every step of a grid, each of shape (steps,)."""

    from_x_t: Tensor
    from_x: Tensor
    fresh: Tensor


class LinearSampler(RowSampler):
    """One evaluation per step, linear in (x_t, x_hat, z): a subclass is the formula of the coefficients."""

    order: ClassVar[int] = 1

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor, s: Tensor) -> Coefficients:
        """The coefficients of the steps from `t` to `s`, float64 of shape (steps,)."""

    def rows(self, schedule: Schedule, times: Tensor) -> list[tuple[Tensor, float, float, float, float]]:
        """(t, s, from_x_t, from_x, fresh) of each step."""
        steps = self.coefficients(schedule, times[:-1], times[1:])
        numbers = (value.tolist() for value in (times[1:], steps.from_x_t, steps.from_x, steps.fresh))
        return list(zip(times.unbind()[:-1], *numbers, strict=True))

    def integrate(self, denoiser, x, times, noise, cond, callback):
        for step, (t, s, a, b, c) in enumerate(remembered(self, denoiser.schedule, times)):
            z = None
            if c != 0.0:
                assert noise is not None  # `sample` has seen to it
                z = noise(step)
            x, x_hat = self.step(denoiser, x, t, cond, a, b, c, z)
            if callback is not None:
                callback(step, s, x, x_hat)
        return x

    @staticmethod
    def step(
        denoiser: Denoiser, x: Tensor, t: Tensor, cond: Any, a: Any, b: Any, c: Any, z: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x_s = a x_t + b x_hat + c z (without noise z is None), and x_hat.

        With a, b and c as tensors of shape () `torch.compile` makes one graph of it for all steps; numbers would be
        part of a graph.
        """
        x_hat = denoiser(x, t, cond)
        x = linear(a, x, b, x_hat)  # with that of `ode/fused.py` the last bit would depend on the batch
        if z is not None:
            x = x.add_(z, alpha=c) if isinstance(c, float) else x + c * z
        return x, x_hat
