"""Inverse problems: a denoiser given y = A x + noise is again a denoiser, so every sampler can draw x given y.

`METHODS` are the approximations by name, best first.
"""

from .dps import DPS
from .moment_matching import MomentMatching
from .operators import Blur, Downsample, Grey, LinearOperator, Mask
from .posterior import Observation, Posterior
from .pseudo_inverse import PseudoInverse

METHODS: dict[str, type[Posterior]] = {"moment-matching": MomentMatching, "pseudo-inverse": PseudoInverse, "dps": DPS}

__all__ = [
    "DPS",
    "METHODS",
    "Blur",
    "Downsample",
    "Grey",
    "LinearOperator",
    "Mask",
    "MomentMatching",
    "Observation",
    "Posterior",
    "PseudoInverse",
]
