"""DEIS (Zhang and Chen 2023, arXiv 2204.13902): Adams-Bashforth on the noise."""

from __future__ import annotations

from dataclasses import dataclass

from .sampler import check_fields
from .staged import Multistep, check_predictor
from .variables import NOISE, Variables


@dataclass(frozen=True)
class DEIS(Multistep):
    """x_s = (alpha_s / alpha_t) x_t + alpha_s sum_j C_j eps_j,  C_j = integral of L_j d rho,  rho = sigma / alpha.

    The paper's eq. 13-15 (AB-DEIS): eps_hat through its last values, the linear part exactly. The polynomial is in
    log rho, so that nothing depends on the schedule's own time (the paper's variants take it in t or rho). One
    evaluation a step, and one more in the first step of predictor 3. Predictor 1 is DDIM with eta 0.

    Args:
        predictor: The number of outputs that the polynomial goes through, 1 to 3 (the paper's degree r plus one); the
            order.
    """

    predictor: int = 3

    def __post_init__(self):
        check_fields(self)
        check_predictor(self.predictor)

    @property
    def corrector(self) -> bool:
        return False

    @property
    def variables(self) -> Variables:
        return NOISE
