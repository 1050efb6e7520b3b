"""Adams-Bashforth-Moulton for the probability-flow ODE, of an order that goes with the number of steps.

It is what is drawn with when nothing is said. The methods are those of `adams`, in its velocity variables: two outputs
predict and the corrector makes order 3, three of them make order 4. A polynomial through three outputs extrapolates
badly where steps are long: on mixtures of Gaussians the higher order is up to 5 times worse at 5 evaluations, level at
10 (but 13 times worse under a guidance of 5), and 1.5 to 4 times better at 20 and 50 (docs/grids.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .adams import Adams
from .sampler import check_fields
from .staged import Multistep
from .variables import Variables

_MANY = 12  # steps, from which on the order is 4


@dataclass(frozen=True)
class ABM(Multistep):
    """`Adams` with predictor 2 in fewer than 12 steps, and predictor 3 in 12 or more; one evaluation a step.

    Its order is that of many steps: 4, as `Adams(3)`.

    Args:
        data_std: k of the velocity variables, as `Adams`.
    """

    data_std: float = 0.5

    predictor: ClassVar[int] = 3
    corrector: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self)
        Adams(data_std=self.data_std)  # it refuses what is none

    @property
    def default_steps(self) -> int:
        return 20

    @property
    def default_grid(self) -> str:
        return "cauchy"

    @property
    def variables(self) -> Variables:
        return Adams(data_std=self.data_std).variables

    def plan(self, schedule, times):
        return Adams(2 if len(times) < _MANY else 3, data_std=self.data_std).plan(schedule, times)
