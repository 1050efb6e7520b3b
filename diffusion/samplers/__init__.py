"""Samplers: solvers from noise to data with one interface and one loop.

`--sampler` and `diffusion.sample` use `build(name, ...)`; in Python the classes can be used directly.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from ..config import SAMPLERS, imported
from ..errors import UserError, choose, did_you_mean
from .ancestral import VARIANCES, Ancestral, Moments, estimate_moments
from .ddim import DDIM
from .ode.dpm_solver import DPMSolver2, DPMSolver3
from .ode.edm import Euler, Heun
from .ode.linear_multistep import ABM, DEIS, Adams, DPMSolverPP2M, DPMSolverPP3M, UniPC
from .ode.probability_flow import ADAPTIVE, FIXED, ODE
from .repaint import RePaint
from .sampler import Callback, LinearSampler, Sampler
from .sde.adaptive_sde import AdaptiveSDE
from .sde.dpm_solver_sde import DPMSolverSDE
from .sde.predictor_corrector import PredictorCorrector
from .sde.reverse_sde import EulerMaruyama, ExponentialSDE
from .sde.sa_solver import SASolver
from .sde.stochasticity import EtaSampler, NoiseProfile
from .sdedit import SDEdit

_CLASSES: dict[str, type[Sampler]] = {name: imported(place) for name, place in SAMPLERS.items()}


def names() -> list[str]:
    """The names that `--sampler` accepts; it also accepts `fitted`, which depends on the model (`diffusion.sample`)."""
    return list(_CLASSES)


def takes(name: str) -> list[str]:
    """The options of the sampler with this name."""
    return list(signature(_CLASSES[choose("sampler", name, names())]).parameters)


def build(name: str, **options: object) -> Sampler:
    """Make a sampler from its name and its options that are not None.

    Args:
        name: One of `names()`.
        options: Fields of the sampler: `steps=`, and e.g. `eta=` (ddim, sde, euler-maruyama), `method=` and
            `tolerance=` (ode), `variance=` (ancestral), `predictor=` (unipc, deis, adams), `s_churn=` (euler, heun).
            None means the sampler's default.

    Raises:
        UserError: For an unknown name, an option that the sampler does not take, or a value it does not accept.
    """
    accepted = takes(name)
    cls = _CLASSES[name]
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in accepted:
            hint = did_you_mean(key, accepted)
            raise UserError(f"{key}: sampler '{name}' does not take it; it takes: {', '.join(accepted)}.{hint}")
    if isinstance(given.get("eta"), str) and not issubclass(cls, EtaSampler):
        raise UserError(f"eta: found '{given['eta']}'; sampler '{name}' takes a number")
    return cls(**given)


__all__ = [
    "ABM",
    "ADAPTIVE",
    "DDIM",
    "DEIS",
    "FIXED",
    "ODE",
    "VARIANCES",
    "Adams",
    "AdaptiveSDE",
    "Ancestral",
    "Callback",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "DPMSolverSDE",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "Heun",
    "LinearSampler",
    "Moments",
    "NoiseProfile",
    "PredictorCorrector",
    "RePaint",
    "SASolver",
    "SDEdit",
    "Sampler",
    "UniPC",
    "build",
    "estimate_moments",
    "names",
    "takes",
]
