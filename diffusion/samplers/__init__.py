"""Samplers: solvers from noise to data that share one interface and one loop.

`build(name, ...)` is what `--sampler` and `diffusion.sample` use; the classes are there for programs.
"""

from __future__ import annotations

from inspect import signature

from ..errors import UserError, choose
from .ancestral import VARIANCES, Ancestral
from .ddim import DDIM
from .probability_flow import ADAPTIVE, FIXED, ODE
from .reverse_sde import EulerMaruyama, ExponentialSDE
from .sampler import Callback, LinearSampler, Sampler

_CLASSES: dict[str, type[Sampler]] = {
    "ode": ODE,
    "ddim": DDIM,
    "ancestral": Ancestral,
    "sde": ExponentialSDE,
    "euler-maruyama": EulerMaruyama,
}


def names() -> list[str]:
    """The names that `--sampler` takes."""
    return list(_CLASSES)


def build(name: str, **options: object) -> Sampler:
    """Make a sampler from its name and those of its options that are not None.

    Args:
        name: One of `names()`.
        options: Fields of the sampler, e.g. `eta=` (ddim, sde, euler-maruyama), `method=` and `tolerance=` (ode),
            `variance=` (ancestral). None stands for the sampler's own default.

    Raises:
        UserError: For an unknown name, an option that the sampler does not take, or a value it does not accept.
    """
    cls = _CLASSES[choose("sampler", name, names())]
    given = {key: value for key, value in options.items() if value is not None}
    takes = list(signature(cls).parameters)
    for key in given:
        if key not in takes:
            raise UserError(f"{key}: sampler '{name}' does not take it; it takes: {', '.join(takes)}")
    return cls(**given)


__all__ = [
    "ADAPTIVE",
    "DDIM",
    "FIXED",
    "ODE",
    "VARIANCES",
    "Ancestral",
    "Callback",
    "EulerMaruyama",
    "ExponentialSDE",
    "LinearSampler",
    "Sampler",
    "build",
    "names",
]
