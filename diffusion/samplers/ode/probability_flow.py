"""The probability-flow ODE through torchdiffeq (Song et al. 2021, arXiv 2011.13456, sec. 4.3; `samplers.ode.flow`).

Adaptive methods (dopri5, dopri8, bosh3, adaptive_heun) choose their steps between the ends of the grid, bounding the
error of each sample, not of the batch mean. Fixed-step methods (euler, midpoint, heun2, heun3, rk4) use the intervals
of the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import SolverError, UserError, check_at_least_one, choose
from ..sampler import Sampler, WithSteps, check_fields
from .flow import ProbabilityFlow, adaptive_options, angle_from_noise, scale

# The methods and their orders. torchdiffeq's fehlberg2 and explicit_adams are omitted: the first is inexact, the
# second is silently wrong on uneven grids.
ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2}
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}  # also the evaluations a step


@dataclass(frozen=True)
class ODE(WithSteps, Sampler):
    """The probability-flow ODE, solved by torchdiffeq.

    Args:
        method: A method of torchdiffeq.
        tolerance: The allowed error per step, relative and absolute, in units where x_t has unit variance (adaptive
            methods).
        max_evaluations: The number of evaluations after which the solve fails.
    """

    method: str = "dopri5"
    tolerance: float = 1e-4
    max_evaluations: int = 5000
    is_stochastic: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(max_evaluations=self.max_evaluations)
        choose("method", self.method, (*ADAPTIVE, *FIXED))
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance: found {self.tolerance}; must be between 0 and 1, e.g. 1e-4")

    @property
    def order(self) -> int:
        return (ADAPTIVE | FIXED)[self.method]

    @property
    def is_adaptive(self) -> bool:
        return self.method in ADAPTIVE

    @property
    def evaluations_per_step(self) -> int | None:
        return FIXED.get(self.method)

    def integrate(self, denoiser, x, times, noise, cond, callback):
        from torchdiffeq import odeint  # imported where needed: it loads much of scipy, 0.4 s

        schedule = denoiser.schedule
        # torchdiffeq rounds times to the dtype of the state
        phi = angle_from_noise(schedule, times).to(x.device)
        nearest = float(phi.double().min()) + 0.5 * math.pi  # to the data, in either direction of integration
        r = scale(schedule, times).tolist()
        flow = ProbabilityFlow(denoiser, cond, self.max_evaluations)
        shape = x.shape
        z = (x / r[0]).reshape(len(x), -1)
        # An adaptive solver returns only the ends; a callback gets the grid's times through dense output.
        points = phi if callback is not None or not self.is_adaptive else phi[[0, -1]]
        options = adaptive_options(phi) if self.is_adaptive else {}

        def field(phi: Tensor, z: Tensor) -> Tensor:
            phi = (phi.double() + 0.5 * math.pi).clamp(min=nearest)
            return flow(phi, z.reshape(shape)).reshape(z.shape)

        try:
            path = odeint(
                field,
                z,
                points,
                rtol=self.tolerance,
                atol=self.tolerance,
                method=self.method,
                options=options,
            )
        except AssertionError as error:  # torchdiffeq raises it when the step falls below the float's resolution
            raise SolverError(f"ode: {self.method} could not go on ({error}); use a larger tolerance") from error
        assert isinstance(path, torch.Tensor)
        if callback is not None:
            for step in range(1, len(times)):
                callback(step - 1, float(times[step]), path[step].reshape(shape) * r[step], None)
        return path[-1].reshape(shape) * r[-1]
