"""One call from a model and a number of samples to a tensor, with any sampler.

Sample i is a function of (model, settings, seed, i): its batch, its position in it and the number of devices do not
change its noise, and change its pixels only by the network's float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .. import samplers
from ..config import AUTO_GRID
from ..denoisers.condition import LABEL, Condition, condition_for, of_parts
from ..denoisers.denoiser import Denoiser, device_of
from ..denoisers.evaluations import evaluation_mode
from ..denoisers.given import (
    check_callable,
    check_rows,
    class_labels,
    cond_for,
    float_type,
    outside_inference_mode,
    real_data,
    real_number,
    seed_number,
    whole_number,
)
from ..denoisers.guidance.classifier_free import ClassifierFree
from ..denoisers.guidance.guided import ALWAYS, Interval
from ..errors import Default, UserError, did_you_mean
from ..numerics.random import Noise
from ..samplers.ode.probability_flow import SolverError
from ..samplers.sampler import NoiseFunction, Sampler, checked_grid
from ..schedules.fitted_start import check_start
from ..schedules.time_grids import later_end, time_grid
from . import fit
from .auto_grid import auto_grid
from .fit import FITTED, fitted_to, from_numbers

DEFAULT_SAMPLER = Default("abm")
DEFAULT_BATCH = 256
Progress = Callable[[int, int], None]


def labels_for(denoiser: Denoiser, label: Any, n: int) -> Tensor | None:
    """Class labels for n samples, shape (n,), or None if none are requested.

    Args:
        denoiser: The denoiser with the classes.
        label: One label for all samples, or one per sample; negative or too large ones are refused.
        n: The number of samples.

    Raises:
        UserError: For a model without classes, a label that is not an integer or not one of the classes, or a wrong
            number of labels.
    """
    if label is None:
        return None
    classes = denoiser.num_classes
    if not classes:
        raise UserError(
            "label: given to a model that was trained without labels; leave it out, "
            "train it with denoiser.conditional=true, or let a classifier steer it (sample.py --classifier); "
            "in Python, a network's own condition is given as cond="
        )
    return class_labels("label", label, classes, n)


def with_label(denoiser: Denoiser, label: Any, cond: Any) -> tuple[Any, Any]:
    """A label and a condition, the label among the parts of the condition where the denoiser has it there.

    Raises:
        UserError: For a condition that says the label, too.
    """
    if label is not None and isinstance(cond, Mapping) and LABEL in cond:
        raise UserError(f"label, cond: both say '{LABEL}'; give one of them")
    if label is None or LABEL not in [part.name for part in denoiser.parts] or not isinstance(cond, Mapping | None):
        return label, cond
    return None, {LABEL: label, **(cond or {})}


def unnamed_sampler(own: str, given: Mapping[str, Any]) -> str:
    """The sampler of a call that names none: the model's `own`, or `ode` for options that only `ode` has.

    Args:
        own: The model's sampler, from its run's configuration if it has one; only a name in the call itself is binding.
        given: The options of the call; a `tolerance` or a `method` that `own` does not accept means `ode`.
    """
    requested = [name for name in ("tolerance", "method") if given.get(name) is not None]
    return "ode" if any(name not in samplers.takes(own) for name in requested) else own


def sampler_for(denoiser: Denoiser, name: str, steps: int | None, **options: Any) -> Sampler:
    """The sampler with this name and its options that are not None: `samplers.build`, or `fitted` to the model.

    Args:
        denoiser: The model.
        name: One of `samplers.names()`, or `fitted`.
        steps: Intervals of the grid; only `fitted` depends on them (5 by default).
        options: Fields of the sampler; for `fitted` `numbers=`, an earlier fit.
    """
    taken = ["steps", "numbers"] if name == FITTED else samplers.takes(name)
    for key, value in options.items():
        if value is None or key in taken or key in _ARGUMENTS:
            continue
        # a slip in an argument of `sample` arrives here among the fields of the sampler
        if hint := did_you_mean(key, [*taken, *_ARGUMENTS]):
            raise UserError(f"{key}: neither sample nor its sampler '{name}' takes it.{hint}")
    if name != FITTED:
        return samplers.build(name, **options)
    for key, value in options.items():
        if value is not None and key != "numbers":
            raise UserError(f"{key}: sampler '{FITTED}' does not take it; it takes steps")
    steps, numbers = fit.DEFAULT_STEPS if steps is None else steps, options.get("numbers")
    return fitted_to(denoiser, steps) if numbers is None else from_numbers(steps, numbers)


def as_made(sampler: Any, options: Mapping[str, Any]) -> Sampler:
    """A sampler given as an object, whose fields no option sets.

    Raises:
        UserError: For another object, and options that are not None.
    """
    if not isinstance(sampler, Sampler):
        found = f"the class {sampler.__name__}" if isinstance(sampler, type) else f"a {type(sampler).__name__}"
        raise UserError(f"sampler: found {found}; needs a name or a sampler, e.g. samplers.DDIM(steps=50)")
    if fields := [name for name, value in options.items() if value is not None]:
        raise UserError(f"{', '.join(fields)}: fields of the sampler; set them where it is made")
    return sampler


def grid_for(
    denoiser: Denoiser,
    sampler: Sampler,
    steps: int | None,
    grid: Any,
    log_snr_end: float | None = None,
) -> Tensor:
    """The grid of a sampler: a given one, or `steps` intervals placed by a named rule (`schedules.time_grid`).

    By default it is `Sampler.default_grid`, whose end depends on the number of steps.

    `auto` is tuned to the model and the sampler (`auto_grid`); the model is then best passed without guidance.

    A solver with few steps stops where the noise is no longer visible; an adaptive one integrates to the path's end.
    """
    own = sampler.own_grid(denoiser.schedule)
    if log_snr_end is not None:
        _check_end_is_free(own is not None, grid, log_snr_end)
    if own is not None and (grid is None or isinstance(grid, str)):
        if grid is not None or steps not in (None, len(own) - 1):
            name, found = ("steps", steps) if grid is None else ("grid", f"'{grid}'")
            raise UserError(f"{name}: found {found}; a fitted sampler has its own {len(own) - 1} steps; leave it out")
        return own
    if grid is not None and not isinstance(grid, str):
        times = checked_grid(denoiser.schedule, grid)
        requested = sampler.steps if steps is None else steps
        if requested not in (None, len(times) - 1):
            raise UserError(f"steps: found {requested}; the grid given has {len(times) - 1}; leave it out")
        return times
    steps = whole_number("steps", _steps_for(sampler, steps), 1)
    if grid == AUTO_GRID:
        return auto_grid(denoiser, sampler, steps)
    if log_snr_end is None and sampler.is_adaptive:
        log_snr_end = math.inf
    if grid is None:
        grid = sampler.default_grid
        log_snr_end = later_end(grid, steps) if log_snr_end is None else log_snr_end
    return time_grid(denoiser.schedule, steps, grid, log_snr_end, math.prod(denoiser.shape))


def _steps_for(sampler: Sampler, steps: int | None) -> int:
    """The steps of the call, of its sampler, or the default."""
    if None not in (steps, sampler.steps) and steps != sampler.steps:
        raise UserError(f"steps: found {steps}, and {sampler.steps} in the sampler; give one of them")
    given = sampler.steps if steps is None else steps
    return sampler.default_steps if given is None else given


def _check_end_is_free(is_fitted: bool, grid: Any, log_snr_end: float) -> None:
    """Refuse an end together with a grid that has its own."""
    if is_fitted or grid == AUTO_GRID or (grid is not None and not isinstance(grid, str)):
        whose = "a fitted sampler" if is_fitted else "the grid 'auto'" if isinstance(grid, str) else "a grid of times"
        raise UserError(f"log_snr_end: found {log_snr_end:g}; {whose} has its own end; leave it out")


@outside_inference_mode
def sample(
    model: Any,
    n: Any,
    sampler: Any = DEFAULT_SAMPLER,
    steps: Any = None,
    seed: Any = 0,
    eta: Any = None,
    grid: Any = None,
    label: Any = None,
    guidance: Any = 1.0,
    guidance_interval: Any = None,
    noise: Any = None,
    dtype: Any = None,
    tolerance: Any = None,
    method: str | None = None,
    batch_size: Any = None,
    start: Any = 0,
    size: Any = None,
    callback: Any = None,
    progress: Any = None,
    cond: Any = None,
    cond_null: Any = None,
    log_snr_end: Any = None,
    fitted_start: Any = None,
    **options: Any,
) -> Tensor:
    """Draw n samples.

    Args:
        model: A bare denoiser, or any model with the GenerativeModel contract (its own `.sample` is called).
        n: The number of samples.
        sampler: A name of `diffusion.samplers.names()`, or `fitted` (to the model, once; 2 to 10 steps), or a sampler
            with its settings, `samplers.DDIM(steps=50, eta=0.0)`; by default `abm` for diffusion models, or `ode` if a
            tolerance or a method is given.
        steps: Intervals of the grid; by default those of the sampler, or 20 for `abm`, 50 for others; an adaptive
            solver chooses its own.
        seed: The seed; sample i depends on (seed, i) only.
        eta: The stochasticity (ddim, sde, euler-maruyama).
        grid: The placement of the steps (`shifted`, `cauchy`, `log-snr`, `karras`, `angle`, `time`, `quadratic`,
            `trailing`, `leading`, or `auto`, tuned to the model without guidance), or the times themselves; by default
            `Sampler.default_grid`.
        label: One class label, or one per sample; None for any class. A trained model also accepts the names of its
            classes.
        guidance: Classifier-free guidance; 1 is off.
        guidance_interval: The noise levels sigma / alpha, (low, high], at which it acts; all by default.
        noise: The initial noise, shape (n, *shape), at the grid's first time, instead of drawn noise (normals times the
            standard deviation of the path there).
        dtype: The dtype of the solver's state, float32 or float64, also by name; by default that of `noise`, or
            float32.
        tolerance: The tolerance of an adaptive solver (ode).
        method: The method of torchdiffeq (ode).
        batch_size: Samples drawn at once, 256 by default.
        start: Index of the first sample: (n, start) = (10, 5) are samples 5 to 14.
        size: Height and width of the images, or one number for both, if the model supports sizes other than that of its
            training (`Denoiser.at_size`).
        callback: Called after each step of each batch (`samplers.Callback`).
        progress: Called after each batch with (samples done, n).
        cond: Another condition of the network instead of a label: a tensor with one entry per sample, (n, ...), a tuple
            of them, or one entry for all, (1, ...). The network receives it as its third argument, batch by batch. For
            a model whose condition has parts: {name: value}; what is left out is none.
        cond_null: The null condition, likewise; required if guidance is not 1 and the network does not say its parts,
            whose null is none of each.
        log_snr_end: The log-SNR at which a named grid ends, by default 3 log(steps) for `shifted` and `cauchy`, 9.25
            for the others, or 2.25 log(steps) if that is later and no grid is requested (an adaptive sampler integrates
            to the end of the path): finer detail than its noise is lost (docs/grids.md).
        fitted_start: Where the path does not begin in noise: a Gaussian fitted to images, `model.fitted_start(images)`
            or `schedules.FittedStart`, from which the initial noise is drawn.
        options: Further fields of the sampler, e.g. `variance=` (ancestral).

    Returns:
        Samples of shape (n, *shape) on the model's device; images are clipped to [-1, 1].

    Raises:
        UserError: For anything that the sampler or the model does not accept; `SolverError` for samples that are not
            finite.
    """
    if "x_1" in options:
        raise UserError("x_1: is not known; the starting noise is given as noise=")
    n, seed, start = whole_number("n", n, 1), seed_number(seed), whole_number("start", start, 0)
    check_rows(start, n)
    check_callable("callback", callback)
    check_callable("progress", progress)
    guidance = real_number("guidance", guidance)
    dtype = None if dtype is None else float_type(dtype)
    log_snr_end = None if log_snr_end is None else real_number("log_snr_end", log_snr_end)
    if not isinstance(model, Denoiser):
        if not callable(getattr(model, "sample", None)):
            raise UserError(f"model: found a {type(model).__name__}; needs a denoiser, or a model (diffusion.load)")
        given = dict(
            sampler=None if sampler is DEFAULT_SAMPLER else sampler, steps=steps, eta=eta, grid=grid, label=label,
            guidance_interval=guidance_interval, size=size, log_snr_end=log_snr_end,
            noise=noise, dtype=dtype, tolerance=tolerance, method=method, batch_size=batch_size, callback=callback,
            progress=progress, cond=cond, cond_null=cond_null, fitted_start=fitted_start, **options,
        )  # fmt: skip
        extra = {"guidance": guidance} if guidance != 1.0 else {}
        extra |= {"start": start} if start else {}
        return model.sample(n, seed=seed, **{k: v for k, v in given.items() if v is not None}, **extra)
    model = model if size is None else model.at_size(size)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
    steps = None if steps is None else whole_number("steps", steps, 1)
    if sampler is DEFAULT_SAMPLER:
        sampler = unnamed_sampler(DEFAULT_SAMPLER, {"tolerance": tolerance, "method": method})
    if isinstance(sampler, str):
        sampler = sampler_for(model, sampler, steps, eta=eta, tolerance=tolerance, method=method, **options)
    else:
        sampler = as_made(sampler, {"eta": eta, "tolerance": tolerance, "method": method, **options})
    if noise is not None:
        noise = real_data("noise", noise, model.shape)
        if len(noise) != n:
            raise UserError(f"noise: found shape {tuple(noise.shape)}; must be {(n, *model.shape)}")
    if fitted_start is not None:
        fitted_start = check_start(fitted_start, model.shape)
        if noise is not None:
            raise UserError("noise, fitted_start: both say where to begin; give one of them")
    dtype = dtype or (noise.dtype if noise is not None else torch.float32)
    denoiser, condition = _steered(model, n, label, cond, cond_null, guidance, guidance_interval)
    times = grid_for(model, sampler, steps, grid, log_snr_end)
    device = device_of(model)
    at_once = min(n, batch_size or DEFAULT_BATCH)
    first_time = times[0].clamp(max=model.schedule.t_max)
    prior_std = float(torch.hypot(*model.schedule(first_time)))
    drawn = []
    with torch.no_grad(), evaluation_mode(model):
        for first in range(0, n, at_once):
            rows = slice(first, min(first + at_once, n))
            draws = Noise(seed, torch.arange(start + rows.start, start + rows.stop), model.shape, dtype, device)
            if fitted_start is not None:
                x = fitted_start.draw(model.schedule, first_time, draws.initial())
            else:
                x = draws.initial() * prior_std if noise is None else noise[rows].to(device=device, dtype=dtype)
            of_rows = None if condition is None else condition[rows].to(device)
            along = sampler.noise_along(draws, model.schedule, times)
            made = sampler.sample(denoiser, x, times, along, of_rows, callback)
            if not bool(torch.isfinite(made).all()):
                raise SolverError(_not_finite(sampler, denoiser, x, times, along, of_rows, guidance))
            drawn.append(made)
            if progress is not None:
                progress(rows.stop, n)
    return torch.cat(drawn)


def _steered(
    model: Denoiser, n: int, label: Any, cond: Any, cond_null: Any, guidance: float, interval: Any
) -> tuple[Denoiser, Tensor | Condition | None]:
    """The model, guided if `guidance` is not 1, and the condition of n samples; the arguments are those of `sample`.

    Raises:
        UserError: For labels and conditions that the model does not take, and for guidance without them.
    """
    guided, steered = guidance != 1.0, "condition; give one" if model.parts else "class; give a label"
    label, cond = with_label(model, label, cond)
    several = isinstance(label, Tensor) and label.ndim > 1 and label.numel() > len(label)
    if cond is None and several and not model.num_classes:
        cond, label = label, None  # several numbers per sample are not a label
    said = cond.values() if isinstance(cond, Mapping) else cond if isinstance(cond, tuple | list) else (cond,)
    if guided and cond is not None and cond_null is None and all(value is None for value in said):
        raise UserError(f"guidance: steers towards a {steered} in place of none")
    if cond is not None and label is not None:
        raise UserError("label, cond: give one of them")
    condition = labels_for(model, label, n) if cond is None else cond_for(cond, model.num_classes, n, model.parts)
    if not guided:
        for name, value in (("cond_null", cond_null), ("guidance_interval", interval)):
            if value is not None:
                raise UserError(f"{name}: is given, but guidance is 1 (off)")
        return model, condition
    if cond is None and condition is None:
        if not model.num_classes and not model.parts:
            raise UserError(
                "guidance: the model was trained without labels; leave it out, or in Python give a condition, cond="
            )
        raise UserError(f"guidance: steers towards a {steered} too")
    null = None
    if cond_null is not None:
        if not isinstance(condition, Condition):
            raise UserError("cond_null: goes with a network's own condition (cond=); labels have a null of their own")
        null = of_parts(model.parts, cond_null, n) if model.parts else condition_for("cond_null", cond_null, n)
        condition = condition.led_from(null)
    if isinstance(condition, Condition) and condition.null is None:
        raise UserError("cond_null: guidance leads away from no condition; give the one that stands for none")
    return ClassifierFree(model, guidance, ALWAYS if interval is None else Interval.of(interval), null), condition


_ARGUMENTS = tuple(name for name in signature(sample).parameters if name not in ("model", "options"))


def _not_finite(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    noise: NoiseFunction,
    cond: Tensor | Condition | None,
    guidance: float,
) -> str:
    """The message for samples that are not finite: the draw is repeated to find the step where it began."""
    found: list[str] = []

    def watch(step: int, t: float, x: Tensor, x_hat: Tensor | None) -> None:
        if not found and not bool(torch.isfinite(x).all()):
            found.append(f", first in step {step + 1} of {len(times) - 1}")

    sampler.sample(denoiser, x, times, noise, cond, watch)
    guided = f" guidance {guidance:g}," if guidance != 1.0 else ""
    return (
        f"sampler: {type(sampler).__name__} made samples that are not finite{''.join(found)}; "
        f"look at{guided} the model's weights and the range of its outputs"
    )
