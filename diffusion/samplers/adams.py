"""Adams's methods for the probability-flow ODE without its linear part, on any grid.

The last outputs of the denoiser are extrapolated by a polynomial, which is integrated over the step (Bashforth):

    x_s = (c_s / c_t) x_t + c_s * integral of w(u) [polynomial through the last outputs](u) du from u_t to u_s

and the state that it predicts is mended with the output found there (Moulton; `staged.Multistep`). In data variables
these are the exponential integrators (Hochbruck and Ostermann, Acta Numerica 2010, sec. 2.5) to which DPM-Solver++,
UniPC and SA-Solver without noise come down. In velocity variables they are the classical methods for

    d(x / r) / dphi = v / r,    r = sqrt((alpha k)^2 + sigma^2),    phi = arctan(sigma / (alpha k))

For data N(0, k^2) the right-hand side is zero: what is left to solve is how the data differ from that. It is smooth at
both ends of the path, where x_hat over the log-SNR has two flat ends and a step between them. On mixtures of narrow
modes (`benchmarks/sampler_accuracy.py`) no other solver here is as accurate at 5 to 50 evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError, choose
from .sampler import check_fields
from .staged import Multistep, check_predictor
from .variables import DATA, NOISE, Variables, Velocity

SPACES = ("velocity", "data", "noise")


@dataclass(frozen=True)
class Adams(Multistep):
    """Adams-Bashforth-Moulton with one evaluation a step and weights that are exact on any grid.

    Of order predictor + 1 with the corrector, and of order predictor without it; predictor 3 then needs one evaluation
    more in its first step. Predictor 1 without corrector is DDIM with eta 0 in data and in noise variables, and Euler's
    method in the angle in velocity variables.

    Args:
        predictor: The number of outputs that the polynomial goes through, 1 to 3.
        corrector: Whether a predicted state is mended with the output found there.
        space: `velocity` (v over the angle phi), `data` (x_hat over half the log-SNR) or `noise` (eps_hat, likewise).
        data_std: k of the velocity variables, between the deviation of the data and that of their modes.
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
        return "cauchy" if self.space == "velocity" else super().default_grid

    @property
    def variables(self) -> Variables:
        return {"velocity": Velocity(self.data_std), "data": DATA, "noise": NOISE}[self.space]
