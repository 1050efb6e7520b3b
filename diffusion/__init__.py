"""Train diffusion models, sample from them with any solver, and measure likelihoods that can be trusted.

    import diffusion

    model = diffusion.train("digits")                                        # or diffusion.load("pretrained:digits")
    images = diffusion.sample(model, 16, sampler="ode", seed=0)              # (16, 1, 8, 8) in [-1, 1]
    estimate = diffusion.log_likelihood(model, images_uint8, method="ode")   # bits/dim with interval, kind, protocol

The parts load when they are first used: `import diffusion` itself costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

from .moved import MOVED, Finder

if TYPE_CHECKING:
    from . import baselines, data, denoisers, likelihood, metrics, networks, objectives, samplers, schedules
    from .likelihood.measure import log_density, log_likelihood
    from .models.adopt import adopt
    from .models.load import load
    from .sampling.encode import edit, encode, interpolate
    from .sampling.sample import sample
    from .storage.foreign_weights import read_weights
    from .training import ema
    from .training.fit import train

_HOME = {
    "read_weights": "storage.foreign_weights",
    "adopt": "models.adopt",
    "edit": "sampling.encode",
    "encode": "sampling.encode",
    "interpolate": "sampling.encode",
    "load": "models.load",
    "sample": "sampling.sample",
    "log_density": "likelihood.measure",
    "log_likelihood": "likelihood.measure",
    "train": "training.fit",
}
_MODULES = {
    name: name
    for name in (
        "baselines", "data", "denoisers", "likelihood", "metrics", "networks", "objectives", "samplers", "schedules",
    )
} | {"ema": "training.ema"}  # fmt: skip

__all__ = [
    "adopt",
    "baselines",
    "data",
    "denoisers",
    "edit",
    "ema",
    "encode",
    "interpolate",
    "likelihood",
    "load",
    "log_density",
    "log_likelihood",
    "metrics",
    "networks",
    "objectives",
    "read_weights",
    "sample",
    "samplers",
    "schedules",
    "train",
]


sys.meta_path.append(Finder())


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    if name == "__version__":  # of the installed package, whose one home is pyproject.toml
        return importlib.metadata.version("diffusion")
    if name in MOVED:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'diffusion' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
