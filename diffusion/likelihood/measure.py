"""The two calls that measure: `log_likelihood` of images of levels and `log_density` of continuous data.

They take any model (of any family with the GenerativeModel contract, or a bare denoiser) and choose the estimator by
name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..defaults import Default
from ..denoisers.denoiser import Denoiser, device_of
from ..errors import UserError, choose
from . import immse, probability_flow, variational_bound
from .dequantization import Dequantizer
from .estimate import Estimate

METHODS = ("ode", "elbo", "elbo-discrete", "immse")
DEFAULT_METHOD = Default("ode")
DENSITY_METHODS = ("ode", "elbo", "immse")


def log_likelihood(
    model: Any, images_uint8: Tensor, method: str = DEFAULT_METHOD, levels: int | None = None, **options: Any
) -> Estimate:
    """The log-probability of images of levels under a model.

    Args:
        model: A model of any family, or a bare denoiser.
        images_uint8: Level indices, uint8 of shape (B, *shape).
        method: `ode` (probability flow: `likelihood.log_likelihood_ode`), `elbo` (continuous time:
            `likelihood.elbo_continuous`), `elbo-discrete` (of the ancestral sampler with `steps=` steps, 1000 by
            default: `likelihood.elbo_discrete`) or `immse` (denoising errors, no backward pass:
            `likelihood.log_likelihood_immse`); other families have methods of their own.
        levels: The number of levels, for a bare denoiser; 256 by default.
        options: Options of the estimator, e.g. `tolerance=`, `probes=`, `draws=`, `solver=`, `dequantization=`,
            `importance_weighted=` (ode), `evaluations=` (elbo, immse), `dequantize=` (elbo), `seed=`.

    Raises:
        UserError: For an unknown method or option, or images that do not fit the model.
    """
    if images_uint8.dtype != torch.uint8:
        raise UserError(
            f"images: found {images_uint8.dtype}; a likelihood is of levels in uint8 (log_density takes real numbers)"
        )
    if not isinstance(model, Denoiser):
        extra = {} if levels is None else {"levels": levels}
        extra |= {} if method is DEFAULT_METHOD else {"method": method}  # each family has a default of its own
        return model.log_likelihood(images_uint8, **extra, **options)
    choose("method", method, METHODS)
    dequantizer = Dequantizer(256 if levels is None else levels)
    images_uint8 = images_uint8.to(device_of(model))
    if method == "ode":
        return _call(probability_flow.log_likelihood_ode, model, dequantizer, images_uint8, **_solver(options))
    if method == "elbo":
        return _call(variational_bound.elbo_continuous, model, dequantizer, images_uint8, **options)
    if method == "immse":
        return _call(immse.log_likelihood_immse, model, dequantizer, images_uint8, **options)
    times = options.pop("times", None)
    if times is None:
        times = variational_bound.discrete_times(model.schedule, options.pop("steps", 1000))
    return _call(variational_bound.elbo_discrete, model, dequantizer, images_uint8, times, **options)


def log_density(model: Any, x: Tensor, method: str = "ode", **options: Any) -> Estimate:
    """The log-density of continuous data under a model, in nats.

    Args:
        model: A diffusion model or a bare denoiser.
        x: Data as the denoiser sees them, shape (B, *shape).
        method: `ode` (probability flow: `likelihood.log_density`), `elbo` (a lower bound of it) or `immse` (denoising
            errors, no backward pass: `likelihood.log_density_immse`).
        options: Options of the estimator: `trace=` (`exact` or `hutchinson`), `probes=`, `tolerance=`, `solver=` (a
            method of torchdiffeq), `seed=`, ...

    Raises:
        UserError: For an unknown method or option, or data that do not fit the model.
    """
    if not isinstance(model, Denoiser):
        return model.log_density(x, method=method, **options)
    choose("method", method, DENSITY_METHODS)
    if not x.is_floating_point():
        raise UserError(f"x: found {x.dtype}; a density is of real numbers (log_likelihood takes levels)")
    x = x.to(device_of(model))
    if method == "ode":
        return _call(probability_flow.log_density, model, x, **_solver(options))
    if method == "immse":
        return _call(immse.log_density_immse, model, x, **options)
    return _call(variational_bound.elbo_continuous, model, None, x, **options)


def _solver(options: dict[str, Any]) -> dict[str, Any]:
    """Here `method` names the estimator; the ODE's own method is `solver`."""
    return {"method" if key == "solver" else key: value for key, value in options.items()}


def _call(estimator: Any, *arguments: Any, **options: Any) -> Estimate:
    """Call an estimator; an option that it does not take is the user's to mend."""
    code = getattr(estimator, "__wrapped__", estimator).__code__
    accepted = code.co_varnames[len(arguments) : code.co_argcount + code.co_kwonlyargcount]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: not an option of {estimator.__name__}; it takes: {', '.join(accepted)}")
    return estimator(*arguments, **options)
