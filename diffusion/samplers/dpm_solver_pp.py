"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), multistep: the data prediction x_hat over half the log-SNR h.

    x_s = (sigma_s / sigma_t) x_t + sigma_s * integral of e^h x_hat dh from h_t to h_s                      (eq. 8)

x_hat is bounded by the data where eps_hat is not, which keeps few steps and strong guidance stable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .staged import Multistep
from .variables import DATA, Nodes, Variables, lagrange


class _DPMSolverPP(Multistep):
    """What both share."""

    @property
    def corrector(self) -> bool:
        return False

    @property
    def variables(self) -> Variables:
        return DATA


@dataclass(frozen=True)
class DPMSolverPP2M(_DPMSolverPP):
    """DPM-Solver++(2M) (Algorithm 2). One evaluation a step; the first one is DDIM's.

        D   = (1 + 1 / (2 r)) x_hat_t - 1 / (2 r) x_hat_prev,    r = (h_t - h_prev) / H,  H = h_s - h_t
        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-H - 1) D

    D is the straight line through the last two outputs, at the middle of the step; `adams` of order 2 integrates the
    line itself.
    """

    @property
    def predictor(self) -> int:
        return 2

    def weights(self, t: Nodes, s: Nodes, using: Nodes) -> Tensor:
        middle = 0.5 * (t.h + s.h)[:, None]
        return (-s.alpha * torch.expm1(t.h - s.h))[:, None] * lagrange(using.h, middle)[:, :, 0]


@dataclass(frozen=True)
class DPMSolverPP3M(_DPMSolverPP):
    """The third-order multistep DPM-Solver++: the parabola through the last three outputs, integrated exactly.

        x_s = (sigma_s / sigma_t) x_t + alpha_s (-phi_1 x_hat_t + phi_2 D_1 - 2 phi_3 D_2)
        phi_1 = e^-H - 1,   phi_2 = phi_1 / H + 1,   phi_3 = phi_2 / H - 1/2

    with H D_1 and D_2 the first derivative at t, and half the second, of the parabola over h / H. The authors' code,
    and copies of it, have phi_3 in place of 2 phi_3, which is of order 2 only; and they start with a step of order 1,
    which is, too. One evaluation a step, and one more in the first step. It is `adams` of order 3 on the data.
    """

    @property
    def predictor(self) -> int:
        return 3
