"""The two public calls: `log_likelihood` of discrete images and `log_density` of continuous data.

They take any model (of any family with the GenerativeModel contract, or a bare denoiser) and choose the estimator by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..denoisers.denoiser import Denoiser, device_of
from ..denoisers.given import (
    check_callable,
    cond_for,
    level_data,
    outside_inference_mode,
    real_number,
    row_numbers,
    seed_number,
    switch,
    tensor_of,
    whole_number,
)
from ..errors import Default, UserError, choose
from ..numerics.random import FIXED_ORDER, fixed_order
from . import immse, probability_flow, variational_bound
from .batching import as_function
from .dequantization import Dequantizer
from .error_budget import complete
from .estimate import Estimate
from .target_error import reach, remembering

# The estimators of levels, and of densities.
METHODS = {
    "ode": probability_flow.log_likelihood_ode,
    "elbo": variational_bound.elbo_continuous,
    "elbo-discrete": variational_bound.elbo_discrete,
    "immse": immse.log_likelihood_immse,
}
DENSITY_METHODS = {
    "ode": probability_flow.log_density,
    "elbo": as_function("elbo_continuous", variational_bound.ContinuousBound),
    "immse": immse.log_density_immse,
}
DEFAULT_METHOD = Default("ode")


@outside_inference_mode
def log_likelihood(
    model: Any,
    images_uint8: Any,
    method: Any = DEFAULT_METHOD,
    levels: Any = None,
    error_budget: Any = False,
    target_error: Any = None,
    **options: Any,
) -> Estimate:
    """The log-probability of discrete images under a model.

    Args:
        model: A model of any family, or a bare denoiser.
        images_uint8: Level indices of shape (B, *shape): uint8, or another integer type.
        method: `ode` (probability flow: `likelihood.log_likelihood_ode`), `elbo` (continuous time:
            `likelihood.elbo_continuous`), `elbo-discrete` (of the ancestral sampler with `steps=` steps, 1000 by
            default: `likelihood.elbo_discrete`) or `immse` (denoising errors, no backward pass:
            `likelihood.log_likelihood_immse`); other families have methods of their own.
        levels: The number of levels, for a bare denoiser; 256 by default. Every method evaluates one on uniformly
            dequantised images; `dequantize=False` (elbo, elbo-discrete) on the bin centres.
        error_budget: Complete the budget by further measurements (`likelihood.error_budget`): a few of the images
            again, at most about a fifth of the time for hundreds of images.
        target_error: Spend compute where the budget is largest until the error, one standard error plus the biases, is
            at most this many bits/dim (`likelihood.target_error`): with as many images as needed, in the fixed order
            (`random.fixed_order`), more draws and probes, and a tighter solve; the images used are in `indices`, the
            cost in `protocol["target"]`.
        options: Options of the estimator, e.g. `tolerance=`, `probes=`, `draws=`, `solver=`, `dequantization=`,
            `importance_weighted=` (ode), `evaluations=` (elbo, immse), `dequantize=` (elbo), `seed=`; `cond=`: labels,
            or another condition of the network, one entry per image (as `diffusion.sample`).

    Raises:
        UserError: For an unknown method or option, or images that do not fit the model.
    """

    known = getattr(getattr(model, "dequantizer", None), "levels", None)
    _check_word(method)
    levels = None if levels is None else whole_number("levels", levels, 2)
    if known is not None and levels not in (None, known):
        raise UserError(f"levels: found {levels}; the model's images have {known}; leave it out")
    levels = None if known is not None else levels  # a trained model has them
    images_uint8 = level_data("images", images_uint8, known or levels)
    options = checked(model, options, len(images_uint8) if images_uint8.ndim else 0)
    error_budget = switch("error_budget", error_budget)
    target_error = None if target_error is None else real_number("target_error", target_error)

    def of(x: Tensor, **options: Any) -> Estimate:
        return _of_levels(model, x, method, levels, **options)

    return _with_errors(of, images_uint8, error_budget, target_error, options)


def _check_word(method: Any) -> None:
    if not isinstance(method, str):
        raise UserError(f"method: found {method!r}; must be the name of an estimator, e.g. 'ode'")


def checked(model: Any, options: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The options of an estimator for n images; None means not given.

    `progress`, `seed`, `indices` and `cond`, labels (n,) or another condition of the network, are checked and
    converted; the estimator does so with its own.

    Raises:
        UserError: For an option of the wrong type.
    """
    options = {name: value for name, value in options.items() if value is not None}
    check_callable("progress", options.get("progress"))
    if "seed" in options:
        options["seed"] = seed_number(options["seed"])
    if "indices" in options:
        options["indices"] = row_numbers("indices", options["indices"], n)
    cond = options.get("cond")
    if cond is None:
        return options
    device = device_of(model) if isinstance(model, nn.Module) else getattr(model, "device", None)
    denoiser = getattr(model, "denoiser", model)
    classes, parts = getattr(denoiser, "num_classes", 0), getattr(denoiser, "parts", ())
    return {**options, "cond": cond_for(cond, classes, n, parts).to(device)}


def _of_levels(model: Any, images_uint8: Tensor, method: str, levels: int | None, **options: Any) -> Estimate:
    if not isinstance(model, Denoiser):
        extra = {} if levels is None else {"levels": levels}
        extra |= {} if method is DEFAULT_METHOD else {"method": method}  # each family has its own default
        return model.log_likelihood(images_uint8, **extra, **options)
    choose("method", method, METHODS)
    if method == "ode":
        options = _solver(options)
    elif method.startswith("elbo"):  # a bare denoiser is evaluated on the same data by every method
        options = {"dequantize": True, **options}
    dequantizer = Dequantizer(256 if levels is None else levels)
    return METHODS[method](model, dequantizer, images_uint8.to(device_of(model)), **options)


@outside_inference_mode
def log_density(
    model: Any,
    x: Any,
    method: Any = "ode",
    error_budget: Any = False,
    target_error: Any = None,
    **options: Any,
) -> Estimate:
    """The log-density of continuous data under a model, in nats.

    Args:
        model: A diffusion model or a bare denoiser.
        x: Data as the denoiser sees them, shape (B, *shape).
        method: `ode` (probability flow: `likelihood.log_density`), `elbo` (a lower bound) or `immse` (denoising errors,
            no backward pass: `likelihood.log_density_immse`).
        error_budget, target_error: As `log_likelihood`.
        options: Options of the estimator: `trace=` (`exact` or `hutchinson`), `probes=`, `tolerance=`, `solver=` (a
            method of torchdiffeq), `seed=`, `cond=` (labels, or another condition of the network), ...

    Raises:
        UserError: For an unknown method or option, or data that do not fit the model.
    """

    x = tensor_of("x", x)
    _check_word(method)
    if not x.is_floating_point():
        raise UserError(f"x: found {x.dtype}; a density is of real numbers (log_likelihood takes levels)")
    if not bool(torch.isfinite(x).all()):
        raise UserError("x: has values that are not finite")
    options = checked(model, options, len(x) if x.ndim else 0)
    error_budget = switch("error_budget", error_budget)
    target_error = None if target_error is None else real_number("target_error", target_error)

    def of(x: Tensor, **options: Any) -> Estimate:
        return _of_numbers(model, x, method, **options)

    return _with_errors(of, x, error_budget, target_error, options)


def _of_numbers(model: Any, x: Tensor, method: str, **options: Any) -> Estimate:
    if not isinstance(model, Denoiser):
        return model.log_density(x, method=method, **options)
    choose("method", method, DENSITY_METHODS)
    options = _solver(options) if method == "ode" else options
    return DENSITY_METHODS[method](model, x.to(device_of(model)), **options)


def _with_errors(
    of: Callable[..., Estimate], x: Tensor, error_budget: bool, target_error: float | None, options: dict[str, Any]
) -> Estimate:
    """`of(x, **options)`, with its whole error budget or to a target if requested."""
    if not error_budget and target_error is None:
        return of(x, **options)
    options = dict(options)
    progress = options.pop("progress", None)
    per_datum = {name: of_x for name in ("cond", "indices") if (of_x := options.pop(name, None)) is not None}
    keys = per_datum.get("indices", torch.arange(len(x))).cpu()
    place = {key: row for row, key in enumerate(keys.tolist())}

    def measure(some: Tensor, changes: Mapping[str, Any], **more: Any) -> Estimate:
        rows = torch.tensor([place[key] for key in some.tolist()], dtype=torch.long)
        labels = {"cond": per_datum["cond"][rows]} if "cond" in per_datum else {}
        return of(x[rows.to(x.device)], **{**options, **changes}, indices=some, **labels, **more)

    if target_error is None:
        return complete(measure(keys, {}, **({} if progress is None else {"progress": progress})), measure)
    reached = reach(remembering(measure), keys[fixed_order(keys)], options, target_error)
    target = {"error": target_error, "order": FIXED_ORDER, **reached.to_dict()}
    found = replace(reached.estimate, protocol={**reached.estimate.protocol, "target": target})
    assert found.indices is not None
    return found.at(torch.tensor([place[key] for key in found.indices.tolist()]).argsort())


def _solver(options: dict[str, Any]) -> dict[str, Any]:
    """Here `method` names the estimator; the method of the ODE is `solver`."""
    return {"method" if key == "solver" else key: value for key, value in options.items()}
