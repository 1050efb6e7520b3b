"""UniPC (Zhao et al. 2023, arXiv 2302.04867): predictor and corrector with one evaluation a step.

UniP-p extrapolates the last p data predictions over half the log-SNR h. The denoiser is asked at the state that it
predicts, and before going on from there, UniC-p mends that state with the new output (`staged.Multistep`). The paper's
weights solve a Vandermonde system (eq. 5) in which its function B(h) cancels: they are the exact integrals of
`variables.step_weights`. Its simplified weight 1/2 for p = 2 depends on B(h) and is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from .sampler import check_fields
from .staged import Multistep, check_predictor
from .variables import DATA, Variables


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC-p in data variables, multistep (Algorithms 1 and 2; app. E.1). One evaluation a step.

    UniPC-p is of order p + 1, UniP-p of order p; UniP-3 needs one evaluation more in its first step. UniP-1 is DDIM
    with eta 0, and both are `adams` in data variables.

    Args:
        predictor: p, the outputs that the predictor extrapolates, 1 to 3.
        corrector: Whether states are corrected (UniPC) or not (UniP).
    """

    predictor: int = 2
    corrector: bool = True

    def __post_init__(self):
        check_fields(self)
        check_predictor(self.predictor)

    @property
    def variables(self) -> Variables:
        return DATA
