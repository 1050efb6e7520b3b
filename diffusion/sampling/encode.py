"""From data to noise and back: encoding by deterministic samplers, interpolation, and editing by partial noise.

The probability-flow ODE is a bijection between data and noise. A deterministic solver integrates it in either
direction: the same grid reversed, the same formulas with steps of the opposite sign. Both directions have the solver's
order, so the round-trip error decreases with the step size (docs/control.md has figures).

Clean data are not on the grid: the last step of sampling is x = E[x | x_t]. The first step of encoding is its inverse
to first order in sigma^2, by one evaluation:

    x_t = alpha (2 x - E[x | x_t = alpha x]) = alpha x + sigma eps_hat(alpha x)
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import samplers
from ..config import AUTO_GRID
from ..denoisers.denoiser import Denoiser, denoiser_of, device_of
from ..denoisers.evaluations import evaluation_mode
from ..denoisers.given import (
    cond_for,
    float_type,
    outside_inference_mode,
    real_data,
    real_number,
    tensor_of,
    whole_number,
)
from ..errors import UserError
from ..samplers import Sampler
from ..samplers.sampler import times_of
from ..samplers.sdedit import SDEdit, log_snr_of_strength
from .sample import DEFAULT_BATCH, as_made, grid_for, labels_for, sample, with_label

DEFAULT_SAMPLER = "ode"
# Arguments that `edit` passes to `diffusion.sample`; the rest are fields of the sampler.
_OF_THE_DRAW = ("steps", "grid", "log_snr_end", "label", "guidance", "guidance_interval", "dtype", "batch_size",
                "start", "callback", "progress", "cond", "cond_null")  # fmt: skip


@outside_inference_mode
def encode(
    model: Any,
    x: Any,
    sampler: Any = DEFAULT_SAMPLER,
    steps: int | None = None,
    grid: Any = None,
    label: Any = None,
    dtype: Any = None,
    batch_size: Any = None,
    cond: Any = None,
    log_snr_end: Any = None,
    **options: Any,
) -> Float[Tensor, " n *dims"]:
    """The noise from which a deterministic sampler draws `x`.

    `diffusion.sample(model, n, sampler, steps=steps, grid=grid, label=label, noise=encode(...))` reproduces x up to the
    error of the solver.

    Args:
        model: A denoiser, or a diffusion model.
        x: Data, shape (n, *shape); images in [-1, 1], numbers in their own units.
        sampler: A sampler without noise: `ode`, `ddim`, `heun`, `unipc`, `adams`, ...
        steps, grid, label, cond, batch_size, log_snr_end: As `diffusion.sample`.
        dtype: The dtype of the solver's state, float32 or float64; that of `x` by default.
        options: Fields of the sampler, e.g. `tolerance=` (ode).

    Returns:
        States at the first time of the grid, shape (n, *shape), on the model's device.

    Raises:
        UserError: For a sampler that draws noise, data of another shape, or a model of another family.
    """
    dtype = None if dtype is None else float_type(dtype)
    log_snr_end = None if log_snr_end is None else real_number("log_snr_end", log_snr_end)
    size = DEFAULT_BATCH if batch_size is None else whole_number("batch_size", batch_size, 1)
    denoiser, sampler = denoiser_of("encode", model), _built(sampler, options)
    if sampler.is_stochastic or isinstance(sampler, SDEdit):
        raise UserError(f"sampler: {type(sampler).__name__} draws noise, so that it has no way back; try ode or adams")
    x = _as_seen(model, real_data("x", x, denoiser.shape))
    label, cond = with_label(denoiser, label, cond)
    if label is not None and cond is not None:
        raise UserError("label, cond: give one of them")
    label = label if isinstance(model, Denoiser) else model.class_numbers(label)
    known = denoiser.num_classes, len(x), denoiser.parts
    labels = labels_for(denoiser, label, len(x)) if cond is None else cond_for(cond, *known)
    schedule, device = denoiser.schedule, device_of(denoiser)
    whole = _grid(model, sampler, steps, grid, log_snr_end)
    times = times_of(schedule, whole).flip(0)
    alpha = float(schedule(times[0])[0])
    encoded = []
    with torch.no_grad(), evaluation_mode(denoiser):
        for rows in torch.arange(len(x)).split(size):
            x_t = x[rows.to(x.device)].to(device=device, dtype=dtype or x.dtype)
            cond = None if labels is None else labels[rows].to(device)
            if float(whole[-1]) == 0.0:
                x_t = alpha * (2.0 * x_t - denoiser(alpha * x_t, times[0], cond))
            encoded.append(sampler.integrate(denoiser, x_t, times, None, cond, None) if len(times) > 1 else x_t)
    found = torch.cat(encoded)
    if not bool(torch.isfinite(found).all()):
        raise UserError(f"sampler: {type(sampler).__name__} led to noise that is not finite; take more steps")
    return found


def slerp(a: Tensor, b: Tensor, u: float | Tensor) -> Float[Tensor, " n *dims"]:
    """Spherical interpolation at the fraction `u` from a to b, row by row (Shoemake 1985), in float64 internally.

    Its direction is rotated by the angle u theta from a to b. Up to a right angle its length is that of Shoemake's

        (sin((1 - u) theta) a + sin(u theta) b) / sin theta,        cos theta = a b / (|a| |b|)

    which is between |a| and |b|. Beyond, with ends of different lengths that formula grows as 1 / sin theta; the length
    is then that at a right angle, sqrt(cos(u pi/2)^2 |a|^2 + sin(u pi/2)^2 |b|^2), again between |a| and |b|.

    Independent normals in many dimensions are orthogonal up to 1 / sqrt(D), so interpolants also have unit variance (in
    the plane, the worst case, 0.96). Their mean (linear interpolation) has variance 1/2.

    Between exactly opposite ends there are many arcs; the one towards the axis furthest from a is used, and in one
    dimension, where there is none, the path through 0. From a row of zeros the path is straight.

    Args:
        a, b: Shape (N, *dims), floats.
        u: From 0 (a, bit for bit) to 1 (b, bit for bit): a number, or one per row, (N,).

    Raises:
        UserError: For ends of different shapes or not of floats, or a u that is neither one number nor one per row.
    """
    if a.shape != b.shape or a.ndim < 2 or not (a.is_floating_point() and b.is_floating_point()):
        found = f"{a.dtype} of shape {tuple(a.shape)} and {b.dtype} of shape {tuple(b.shape)}"
        raise UserError(f"a, b: found {found}; both need floats of one shape (n, *dims)")
    share = torch.as_tensor(u, dtype=torch.float64, device=a.device)
    if share.shape not in ((), (1,), (len(a),)):
        raise UserError(f"u: found shape {tuple(share.shape)}; needs one number, or one for each of {len(a)} rows")
    share = share.expand(len(a))[:, None]
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    (from_a, length_a), (from_b, length_b) = _polar(flat_a), _polar(flat_b)
    cos = (from_a * from_b).sum(1, keepdim=True)
    across, sin = _polar(from_b - cos * from_a)
    axis = torch.nn.functional.one_hot(from_a.abs().argmin(1), from_a.shape[1]).double()
    side = torch.where(from_a[:, :1] < 0, -1.0, 1.0)  # another for a than for -a, so that the mean over normals is 0
    across = torch.where(sin < 1e-12, side * axis, across)  # a rounding residue has no direction
    across, _ = _polar(across - (across * from_a).sum(1, keepdim=True) * from_a)
    theta = torch.atan2(sin, cos)  # as accurate for angles near 0 and pi as for right angles
    from_a = torch.where(length_a > 0, from_a, from_b)
    theta = torch.where((length_a > 0) & (length_b > 0), theta, 0.0)
    # sin(k theta) / sin(theta) = k sinc(k theta) / sinc(theta), which has no 0 / 0
    up_to_right = theta.clamp(max=0.5 * math.pi)
    of_a, of_b = (
        k * torch.sinc(k * up_to_right / math.pi) / torch.sinc(up_to_right / math.pi) for k in (1 - share, share)
    )
    of_a, of_b = of_a * length_a, of_b * length_b
    length = torch.sqrt(of_a**2 + of_b**2 + 2.0 * of_a * of_b * torch.cos(up_to_right))
    between = length * (torch.cos(share * theta) * from_a + torch.sin(share * theta) * across)
    between = torch.where(share == 0.0, flat_a, torch.where(share == 1.0, flat_b, between))
    return between.to(a.dtype).reshape(a.shape)


def _polar(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (N, D) and lengths (N, 1); a row of zeros has the direction 0."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0), length


@outside_inference_mode
def interpolate(
    model: Any,
    x_a: Any,
    x_b: Any,
    n: Any = 8,
    sampler: Any = DEFAULT_SAMPLER,
    **options: Any,
) -> Float[Tensor, " n *dims"]:
    """n samples between x_a and x_b: both are encoded, their noises interpolated on an arc, and each point decoded.

    Args:
        model: A denoiser, or a diffusion model.
        x_a, x_b: Two samples, shape (*shape).
        n: The number of points, 2 or more; the first and the last are x_a and x_b after a round trip.
        sampler: As `encode`.
        options: `steps`, `grid`, `label`, `dtype` and others, as `encode`.

    Raises:
        UserError: As `encode`, and for n below 2.
    """
    if whole_number("n", n) < 2:
        raise UserError(f"n: found {n}; must be at least 2, the two ends")
    shape = denoiser_of("interpolate", model).shape
    x_a, x_b = (real_data(name, tensor_of(name, x)[None], shape) for name, x in (("x_a", x_a), ("x_b", x_b)))
    ends = torch.cat((x_a, x_b.to(x_a)))
    noise = encode(model, ends, sampler, **options)
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=noise.device)
    arc = slerp(noise[:1].expand(n, *noise.shape[1:]), noise[1:].expand(n, *noise.shape[1:]), u)
    return sample(model, n, sampler, noise=arc, **options)


@outside_inference_mode
def edit(
    model: Any,
    x: Any,
    strength: Any = None,
    log_snr: Any = None,
    n: Any = None,
    seed: Any = 0,
    sampler: Any = DEFAULT_SAMPLER,
    **options: Any,
) -> Float[Tensor, " n *dims"]:
    """Variations of data: noise is added up to a noise level, and removed again (`samplers.sdedit`).

    Args:
        model: A denoiser, or a diffusion model.
        x: One sample, shape (*shape), for n variations of it; or n samples, shape (n, *shape), for one each.
        strength: How far to go, between 0 and 1; 1/2, the default, is as much noise as signal.
        log_snr: The noise level itself, instead of the strength.
        n: The number of variations of one sample; 1 by default.
        seed: The seed of the noise; variation i depends on (seed, i) only.
        sampler: Any sampler, deterministic or stochastic.
        options: As `diffusion.sample`; `steps` are those of the whole path.

    Raises:
        UserError: For data of another shape, both strength and log_snr, or anything that `diffusion.sample` refuses.
    """
    denoiser = denoiser_of("edit", model)
    inner = _built(sampler, {key: options.pop(key) for key in list(options) if key not in _OF_THE_DRAW})
    if strength is not None and log_snr is not None:
        raise UserError("strength, log_snr: give one of them")
    x = tensor_of("x", x)
    one = x.ndim == len(denoiser.shape)
    x = _as_seen(model, real_data("x", x[None] if one else x, denoiser.shape))
    x, n = x[0] if one else x, None if n is None else whole_number("n", n, 1)
    if not one and n not in (None, len(x)):
        raise UserError(f"n: found {n} for {len(x)} data; accepted: one sample, or n of them")
    strength = 0.5 if strength is None else real_number("strength", strength)
    level = log_snr_of_strength(strength) if log_snr is None else real_number("log_snr", log_snr)
    n = (n or 1) if one else len(x)
    if not one:
        options["batch_size"] = n  # each row of a batch has its own x
    ending = options.pop("log_snr_end", None)
    options["grid"] = _grid(model, inner, options.pop("steps", None), options.get("grid"), ending)
    return sample(model, n, SDEdit(x, level, inner), seed=seed, **options)


def _as_seen(model: Any, x: Tensor) -> Tensor:
    """Data in the units of the denoiser of a model (which `model.sample` leaves again)."""
    normalizer = getattr(model, "normalizer", None)
    return x if normalizer is None else normalizer.normalize(x).to(x.dtype)


def _built(sampler: Any, options: dict[str, Any]) -> Sampler:
    return samplers.build(sampler, **options) if isinstance(sampler, str) else as_made(sampler, options)


def _grid(
    model: Any,
    sampler: Sampler,
    steps: int | None,
    grid: Any,
    log_snr_end: float | None,
) -> Tensor:
    requested = isinstance(grid, str) and grid == AUTO_GRID
    with getattr(model, "tuned", nullcontext)() if requested else nullcontext():
        return grid_for(denoiser_of("grid", model), sampler, steps, grid, log_snr_end)
