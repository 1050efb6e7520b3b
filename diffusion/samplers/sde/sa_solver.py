"""SA-Solver: stochastic Adams methods for the reverse SDE (Xue et al. 2023, arXiv 2309.05019)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from ...errors import UserError
from ...schedules import Schedule
from ..ode.coordinates import gauss_legendre, lagrange
from ..sampler import RowSampler, remembered
from .stochasticity import EtaSampler, EtaSteps

_QUADRATURE_POINTS = 24


@dataclass(frozen=True)
class SASolver(EtaSampler, RowSampler):
    """A polynomial through the last outputs for x_hat, in x_s = keep x_t + integral + noise (`stochasticity`).

    The predictor (prop. 5.1) interpolates the last `predictor` outputs; the corrector (prop. 5.2) repeats the step,
    with the same noise, using the output at the predicted state and the `corrector` before it. Predict, evaluate,
    correct: one evaluation per step. The last state before clean data is not corrected.

        x_s = (sigma_s / sigma_t) rho x_t + sum_j b_j x_hat_j + sigma_s sqrt(1 - rho^2) z
        b_j = alpha_s integral of exp(-(K_s - K)) L_j dK from K_t to K_s

    A predictor of two uses b as in DPM-Solver++, alpha_s (1 - exp(-k)) (1 + r/2, -r/2): equal to second order, and far
    more stable at large eta; without corrector it is SDE-DPM-Solver++(2M) (sec. 5.3 of the paper). The paper's tau is
    eta; it recommends a profile that is 0 at both ends of the path (`1@-3:5`), and predictor=3, corrector=3 for many
    steps.

    With noise the law converges with order at most 2 (the strong order is 1).

    Args:
        eta: The stochasticity, any value >= 0, or a profile over log-SNR (`NoiseProfile`).
        predictor: The number of outputs that the predictor uses, 1 to 4.
        corrector: The number of outputs besides the newest that the corrector uses, 1 to 4, or 0 for no corrector.
    """

    predictor: int = 2
    corrector: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name, value, least in (("predictor", self.predictor, 1), ("corrector", self.corrector, 0)):
            if value not in range(least, 5):
                raise UserError(f"{name}: found {value}; accepted: {least} to 4")

    @property
    def order(self) -> int:
        # The first step has one output: uncorrected it limits the whole solve to order 2, corrected to order 3.
        limits = (self.predictor, 2) if not self.corrector else (self.predictor + 1, self.corrector + 1, 3)
        return min(*limits, 2) if self.is_stochastic else min(limits)

    def integrate(self, denoiser, x, times, noise, cond, callback):
        memory: tuple[Tensor, ...] = ()
        for step, (t, s, a, weights, c) in enumerate(remembered(self, denoiser.schedule, times)):
            x_hat = denoiser(x, t, cond)
            x = torch.add(a * x, x_hat, alpha=weights[0])
            for weight, output in zip(weights[1:], memory, strict=True):
                x = x.add_(output, alpha=weight)
            if c != 0.0:
                assert noise is not None  # `sample` has seen to it
                x = x.add_(noise(step), alpha=c)
            memory = (x_hat, *memory)[: max(self.predictor, self.corrector) if self.corrector else self.predictor - 1]
            if callback is not None:
                callback(step, s, x, x_hat)
        return x

    def rows(self, schedule: Schedule, times: Tensor) -> list[tuple[Tensor, float, float, list[float], float]]:
        """(t, s, factor of x_t, of all outputs in memory, newest first, of the noise) of each step.

        The correction of the step's start is included in the factors of outputs: predicted and corrected state differ
        only by sum_j (q_j - p_j) m_j, p: the weights that predicted, q: those that correct. Corrected states are never
        needed as tensors (as in `ode.multistep.Multistep`).
        """
        steps = self.linear_part(schedule, times[:-1], times[1:])
        weights = self._weights(schedule, times, steps, self.predictor)
        keep = steps.keep.tolist()
        if self.corrector:
            correct = self._weights(schedule, times, steps, self.corrector + 1, ahead=1)
            predict = [[0.0, *row] for row in weights]  # by the outputs in memory one step later
            for i in range(1, len(weights)):
                changes = [keep[i] * (q - p) for q, p in zip_longest(correct[i - 1], predict[i - 1], fillvalue=0.0)]
                weights[i] = [b + change for b, change in zip_longest(weights[i], changes, fillvalue=0.0)]
        return list(zip(times.unbind()[:-1], times[1:].tolist(), keep, weights, steps.fresh.tolist(), strict=True))

    def _weights(
        self, schedule: Schedule, times: Tensor, steps: EtaSteps, count: int, ahead: int = 0
    ) -> list[list[float]]:
        """Each step's weights of the last `count` outputs, newest first: that at t, or at s where `ahead` is 1."""
        log_snr, alpha = schedule.log_snr(times), schedule(times[1:])[0]
        weights: list[list[float]] = [[]] * len(steps.h)
        for known in range(1, count + 1):  # the first steps have fewer
            rows = torch.tensor([i for i in range(len(weights)) if min(count, i + 1 + ahead) == known])
            if len(rows) == 0:
                continue
            nodes = log_snr[rows[:, None] + ahead - torch.arange(known)] - log_snr[rows, None]
            place = nodes / steps.h[rows, None]  # in units of the step: 0 at t, 1 at s
            if count == known == 2 and not ahead:
                share = -0.5 / place[:, 1]
                b = -torch.expm1(-steps.decay[rows, None]) * torch.stack((1.0 + share, -share), 1)
            else:
                b = _integrals(steps.decay[rows, None], place)
            for i, row in zip(rows.tolist(), (alpha[rows, None] * b).tolist(), strict=True):
                weights[i] = row
        return weights


def _integrals(decay: Tensor, nodes: Tensor) -> Tensor:
    """The integrals of exp(-decay (1 - u)) L_j(u) decay du over [0, 1], with the Lagrange polynomials L_j of the nodes.

    Args:
        decay: Shape (n, 1).
        nodes: Shape (n, k).

    Returns:
        Shape (n, k).
    """
    u, gauss = gauss_legendre(_QUADRATURE_POINTS)
    mass = decay * torch.exp(-decay * (1.0 - u)) * gauss
    return (lagrange(nodes, u.expand_as(mass)) * mass[:, None]).sum(-1)
