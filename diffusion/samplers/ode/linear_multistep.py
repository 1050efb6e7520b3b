"""Adams methods for the probability-flow ODE without its linear part, on any grid.

The last outputs of the denoiser are extrapolated by a polynomial, which is integrated over the step (Bashforth):

    x_s = (c_s / c_t) x_t + c_s * integral of w(u) [polynomial through the last outputs](u) du from u_t to u_s

and the predicted state is corrected with the output there (Moulton; `multistep.Multistep`). In data variables these are
the exponential integrators (Hochbruck and Ostermann, Acta Numerica 2010, sec. 2.5) to which DPM-Solver++, UniPC and
SA-Solver without noise reduce. In velocity variables they are the classical methods for

    d(x / r) / dphi = v / r,    r = sqrt((alpha k)^2 + sigma^2),    phi = arctan(sigma / (alpha k))

For data N(0, k^2) the right-hand side is zero: only the deviation of the data from that remains. It is smooth at both
ends of the path, whereas x_hat over log-SNR has two flat ends and a step in between. On mixtures of narrow modes
(`benchmarks/sampler_accuracy.py`) no other solver here is as accurate at 5 to 50 evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UserError, choose
from ...schedules.time_grids import SHIFTED
from ..sampler import check_fields
from .coordinates import DATA, NOISE, Nodes, Variables, Velocity, lagrange
from .multistep import Multistep, check_predictor

SPACES = ("velocity", "data", "noise")


@dataclass(frozen=True)
class Adams(Multistep):
    """Adams-Bashforth-Moulton with one evaluation per step and weights that are exact on any grid.

    Of order predictor + 1 with the corrector, and of order predictor without it; predictor 3 then needs one additional
    evaluation in its first step. Predictor 1 without corrector is DDIM with eta 0 in data and noise variables, and
    Euler's method in the angle in velocity variables.

    Args:
        predictor: The number of outputs that the polynomial interpolates, 1 to 3.
        corrector: Whether a predicted state is corrected with the output there.
        space: `velocity` (v over the angle phi), `data` (x_hat over half the log-SNR) or `noise` (eps_hat, likewise).
        data_std: k of the velocity variables, between the standard deviation of the data and that of their modes.
    """

    predictor: int = 2
    corrector: bool = True
    space: str = "velocity"
    data_std: float = 0.5

    def __post_init__(self):
        check_fields(self)
        check_predictor(self.predictor)
        choose("space", self.space, SPACES)
        if not 0.0 < self.data_std < float("inf"):
            raise UserError(f"data_std: found {self.data_std}; must be positive")

    @property
    def default_grid(self) -> str:
        return SHIFTED if self.space == "velocity" else super().default_grid

    @property
    def variables(self) -> Variables:
        return {"velocity": Velocity(self.data_std), "data": DATA, "noise": NOISE}[self.space]


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC-p in data variables, multistep (Algorithms 1 and 2; app. E.1). One evaluation per step.

    UniPC-p is of order p + 1, UniP-p of order p; UniP-3 needs one additional evaluation in its first step. UniP-1 is
    DDIM with eta 0, and both are `adams` in data variables.

    Args:
        predictor: p, the outputs that the predictor extrapolates, 1 to 3.
        corrector: Whether states are corrected (UniPC) or not (UniP).
    """

    predictor: int = 2
    corrector: bool = True
    variables: ClassVar[Variables] = DATA

    def __post_init__(self):
        check_fields(self)
        check_predictor(self.predictor)


@dataclass(frozen=True)
class DEIS(Multistep):
    """x_s = (alpha_s / alpha_t) x_t + alpha_s sum_j C_j eps_j,  C_j = integral of L_j d rho,  rho = sigma / alpha.

    The paper's eq. 13-15 (AB-DEIS): eps_hat extrapolated from its last values, the linear part exact. The polynomial is
    in log rho, so that nothing depends on the schedule's time (the paper's variants use t or rho). One evaluation per
    step, and one more in the first step of predictor 3. Predictor 1 is DDIM with eta 0.

    Args:
        predictor: The number of outputs that the polynomial interpolates, 1 to 3 (the paper's degree r plus one); the
            order.
    """

    predictor: int = 3
    corrector: ClassVar[bool] = False
    variables: ClassVar[Variables] = NOISE

    def __post_init__(self):
        check_fields(self)
        check_predictor(self.predictor)


class _DPMSolverPP(Multistep):
    """Common to both."""

    corrector: ClassVar[bool] = False
    variables: ClassVar[Variables] = DATA


@dataclass(frozen=True)
class DPMSolverPP2M(_DPMSolverPP):
    """DPM-Solver++(2M) (Algorithm 2). One evaluation per step; the first step is DDIM's.

        D   = (1 + 1 / (2 r)) x_hat_t - 1 / (2 r) x_hat_prev,    r = (h_t - h_prev) / H,  H = h_s - h_t
        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-H - 1) D

    D is the straight line through the last two outputs, at the midpoint of the step; `adams` of order 2 integrates the
    line exactly.
    """

    predictor: ClassVar[int] = 2

    def weights(self, t: Nodes, s: Nodes, using: Nodes) -> Tensor:
        middle = 0.5 * (t.h + s.h)[:, None]
        return (-s.alpha * torch.expm1(t.h - s.h))[:, None] * lagrange(using.h, middle)[:, :, 0]


@dataclass(frozen=True)
class DPMSolverPP3M(_DPMSolverPP):
    """The third-order multistep DPM-Solver++: the parabola through the last three outputs, integrated exactly.

        x_s = (sigma_s / sigma_t) x_t + alpha_s (-phi_1 x_hat_t + phi_2 D_1 - 2 phi_3 D_2)
        phi_1 = e^-H - 1,   phi_2 = phi_1 / H + 1,   phi_3 = phi_2 / H - 1/2

    with H D_1 and D_2 the first derivative at t, and half the second, of the parabola over h / H. The authors' code,
    and copies of it, have phi_3 instead of 2 phi_3, which is only of order 2; so is their start with a step of order 1.
    One evaluation per step, and one more in the first step. It is `adams` of order 3 in data variables.
    """

    predictor: ClassVar[int] = 3


_MANY = 12  # steps from which the order is 4


@dataclass(frozen=True)
class ABM(Multistep):
    """`Adams` with predictor 2 in fewer than 12 steps, and predictor 3 in 12 or more; one evaluation per step.

    Its declared order is that for many steps: 4, as `Adams(3)`.

    Args:
        data_std: k of the velocity variables, as `Adams`.
    """

    data_std: float = 0.5

    predictor: ClassVar[int] = 3
    corrector: ClassVar[bool] = True
    default_steps: ClassVar[int] = 20
    default_grid: ClassVar[str] = SHIFTED

    def __post_init__(self):
        check_fields(self)
        Adams(data_std=self.data_std)  # refuses invalid values

    @property
    def variables(self) -> Variables:
        return Adams(data_std=self.data_std).variables

    def plan(self, schedule, times):
        return Adams(2 if len(times) < _MANY else 3, data_std=self.data_std).plan(schedule, times)
