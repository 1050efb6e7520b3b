"""Drawing: one call from a model and a number of samples to a tensor, with any sampler.

Sample i is a function of (model, settings, seed, i): the batch it is drawn in, its place there and the number of
devices change its noise by nothing and its pixels by no more than the network's float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import fit_sampler, samplers
from .auto_grid import auto_grid
from .defaults import Default
from .denoisers.denoiser import Denoiser, device_of
from .denoisers.guidance.classifier_free import ClassifierFree
from .denoisers.guidance.guided import ALWAYS, Interval
from .errors import UserError
from .evaluations import evaluation_mode
from .fit_sampler import FITTED, fitted_to, from_numbers
from .random import Noise
from .samplers.sampler import Callback, Sampler
from .schedules import time_grid
from .schedules.time_grids import AUTO

DEFAULT_SAMPLER = Default("ode")
DEFAULT_STEPS = 50
DEFAULT_BATCH = 256
Progress = Callable[[int, int], None]


def labels_for(denoiser: Denoiser, label: int | Sequence[int] | Tensor | None, n: int) -> Tensor | None:
    """Class labels for n samples, shape (n,), or None where none are asked for.

    Args:
        denoiser: The denoiser whose classes are meant.
        label: One label for all samples, or one a sample; negative or too large ones are refused.
        n: The number of samples.

    Raises:
        UserError: For a model without classes, a label that is not one of them, or a wrong number of labels.
    """
    if label is None:
        return None
    classes = denoiser.num_classes
    if not classes:
        raise UserError(
            "label: given to a model that was trained without labels; leave it out, "
            "train it with denoiser.conditional=true, or let a classifier steer it (sample.py --classifier)"
        )
    labels = torch.as_tensor(label, dtype=torch.long).reshape(-1)
    if len(labels) not in (1, n):
        raise UserError(f"label: found {len(labels)} labels for {n} samples; accepted: one label, or one a sample")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"label: found {int(wrong[0])}; the model has the classes 0 to {classes - 1}")
    return labels.expand(n)


def sampler_for(denoiser: Denoiser, name: str, steps: int | None, **options: Any) -> Sampler:
    """The sampler of a name and those of its options that are not None: `samplers.build`, or `fitted` to the model.

    Args:
        denoiser: The model.
        name: One of `samplers.names()`, or `fitted`.
        steps: Intervals of the grid; only `fitted` depends on them (5 by default).
        options: Fields of the sampler; `numbers=`, what was fitted before, of `fitted`.
    """
    if name != FITTED:
        return samplers.build(name, **options)
    for key, value in options.items():
        if value is not None and key != "numbers":
            raise UserError(f"{key}: sampler '{FITTED}' does not take it; it takes steps")
    steps, numbers = fit_sampler.DEFAULT_STEPS if steps is None else steps, options.get("numbers")
    return fitted_to(denoiser, steps) if numbers is None else from_numbers(steps, numbers)


def grid_for(
    denoiser: Denoiser,
    sampler: Sampler,
    steps: int | None,
    grid: str | Sequence[float] | Tensor | None,
    log_snr_end: float | None = None,
) -> Tensor:
    """The grid a sampler walks: a given one, or `steps` intervals placed by a named rule (`schedules.time_grid`).

    `auto` is tuned to the model and the sampler (`auto_grid`); guidance around the model is then better left off it.

    A solver of few steps leaves the path where no one sees its noise any more; an adaptive one walks it to the end.
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
        return torch.as_tensor(grid, dtype=torch.float64)
    steps = DEFAULT_STEPS if steps is None else steps
    if grid == AUTO:
        return auto_grid(denoiser, sampler, steps)
    if log_snr_end is None and sampler.is_adaptive:
        log_snr_end = float("inf")
    return time_grid(denoiser.schedule, steps, grid or "log-snr", log_snr_end)


def _check_end_is_free(is_fitted: bool, grid: str | Sequence[float] | Tensor | None, log_snr_end: float) -> None:
    """Refuse an end beside a grid that has its own."""
    if is_fitted or grid == AUTO or (grid is not None and not isinstance(grid, str)):
        whose = "a fitted sampler" if is_fitted else "the grid 'auto'" if isinstance(grid, str) else "a grid of times"
        raise UserError(f"log_snr_end: found {log_snr_end:g}; {whose} has its own end; leave it out")


def sample(
    model: Any,
    n: int,
    sampler: str | Sampler = DEFAULT_SAMPLER,
    steps: int | None = None,
    seed: int = 0,
    eta: float | str | None = None,
    grid: str | Sequence[float] | Tensor | None = None,
    label: int | Sequence[int] | Tensor | None = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    x_1: Tensor | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    method: str | None = None,
    batch_size: int | None = None,
    start: int = 0,
    size: int | Sequence[int] | None = None,
    callback: Callback | None = None,
    progress: Progress | None = None,
    log_snr_end: float | None = None,
    **options: Any,
) -> Tensor:
    """Draw n samples.

    Args:
        model: A bare denoiser, or any model with the GenerativeModel contract (its own `.sample` is called).
        n: The number of samples.
        sampler: A name of `diffusion.samplers.names()`, or `fitted` (to the model, once; 2 to 10 steps), or a sampler;
            the default is left to the model's family.
        steps: Intervals of the grid, 50 by default; an adaptive solver chooses its own.
        seed: The seed; sample i depends on (seed, i) only.
        eta: The noise dial (ddim, sde, euler-maruyama).
        grid: How the steps are placed (`log-snr`, `karras`, `angle`, `time`, `quadratic`, or `auto`, tuned to the model
            without guidance), or the times themselves.
        label: One class label, or one a sample; None for any class.
        guidance: Classifier-free guidance; 1 is off.
        guidance_interval: The noise levels sigma / alpha, (low, high], at which it acts; all by default.
        x_1: Starting states at the grid's first time, shape (n, *shape), in place of drawn ones (normals times the
            standard deviation of the path there).
        dtype: Of the solver's state, float32 or float64; of `x_1` by default, or float32.
        tolerance: Of an adaptive solver (ode).
        method: Of torchdiffeq (ode).
        batch_size: Samples drawn at once, 256 by default.
        start: Index of the first sample: (n, start) = (10, 5) are samples 5 to 14.
        size: Height and width of the images, or one number for both, where the model takes other sizes than that of its
            training (`Denoiser.at_size`).
        callback: Called after each step of each batch (`samplers.Callback`).
        progress: Called after each batch with (samples done, n).
        log_snr_end: The log-SNR at which a named grid leaves the path for the datum, 9.25 by default (an adaptive
            sampler walks the path to its end): what is narrower than its noise is lost (docs/grids.md).
        options: Further fields of the sampler, e.g. `variance=` (ancestral).

    Returns:
        Samples of shape (n, *shape) on the model's device; images are in [-1, 1], cut there.

    Raises:
        UserError: For anything that the sampler or the model does not take.
    """
    if not isinstance(model, Denoiser):
        given = dict(
            sampler=None if sampler is DEFAULT_SAMPLER else sampler, steps=steps, eta=eta, grid=grid, label=label,
            guidance_interval=guidance_interval, size=size, log_snr_end=log_snr_end,
            x_1=x_1, dtype=dtype, tolerance=tolerance, method=method, batch_size=batch_size, callback=callback,
            progress=progress, **options,
        )  # fmt: skip
        extra = {"guidance": guidance} if guidance != 1.0 else {}
        extra |= {"start": start} if start else {}
        return model.sample(n, seed=seed, **{k: v for k, v in given.items() if v is not None}, **extra)
    model = model if size is None else model.at_size(size)
    if n < 1:
        raise UserError(f"n: found {n}; must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}; must be at least 1")
    if isinstance(sampler, str):
        sampler = sampler_for(model, sampler, steps, eta=eta, tolerance=tolerance, method=method, **options)
    elif eta is not None or tolerance is not None or method is not None or options:
        raise UserError("eta, tolerance, method: are fields of the sampler; set them where it is made")
    dtype = dtype or (x_1.dtype if x_1 is not None else torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"dtype: found {dtype}; the solver's state is float32 or float64")
    if x_1 is not None and tuple(x_1.shape) != (n, *model.shape):
        raise UserError(f"x_1: found shape {tuple(x_1.shape)}; must be {(n, *model.shape)}")

    interval = ALWAYS if guidance_interval is None else Interval(*guidance_interval)
    denoiser = ClassifierFree(model, guidance, interval) if guidance != 1.0 else model
    labels = labels_for(model, label, n)
    if guidance != 1.0 and labels is None:
        raise UserError("guidance: steers towards a class; give a label too")
    if guidance == 1.0 and guidance_interval is not None:
        raise UserError("guidance_interval: is given, but guidance is 1 (off)")
    times = grid_for(model, sampler, steps, grid, log_snr_end)
    device = device_of(model)
    size = min(n, batch_size or DEFAULT_BATCH)
    prior_std = float(torch.hypot(*model.schedule(times[0].clamp(max=model.schedule.t_max))))
    drawn = []
    with torch.no_grad(), evaluation_mode(model):
        for first in range(0, n, size):
            rows = slice(first, min(first + size, n))
            noise = Noise(seed, torch.arange(start + rows.start, start + rows.stop), model.shape, dtype, device)
            x = noise.initial() * prior_std if x_1 is None else x_1[rows].to(device=device, dtype=dtype)
            cond = None if labels is None else labels[rows].to(device)
            along = sampler.noise_along(noise, model.schedule, times)
            drawn.append(sampler.sample(denoiser, x, times, along, cond, callback))
            if progress is not None:
                progress(rows.stop, n)
    return torch.cat(drawn)
