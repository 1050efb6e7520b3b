"""What a step costs beside the network: two to four operations on the whole state, and next to none on less."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion import samplers, schedules
from diffusion.denoisers import Denoiser
from diffusion.schedules import time_grid

SHAPE = (2, 3, 8, 8)
VIEWS = ("view", "reshape", "_unsafe_view", "expand", "select", "detach", "alias", "slice", "unsqueeze")
# Two outputs from memory, and noise; of abm, which is of order 4 here, three outputs.
MOST_WHOLE = {"sa-solver": 5, "abm": 5}
# Langevin's step size is a ratio of norms: a dozen operations on a number for each sample, and its times are checked.
MOST = {"predictor-corrector": 16, "sa-solver": 7, "abm": 7}


class Constant(Denoiser):
    """The same x_hat at every step, at no cost."""

    def __init__(self):
        super().__init__()
        self.schedule, self.shape = schedules.VP(), SHAPE[1:]
        self.x_hat = torch.zeros(SHAPE)

    def forward(self, x_t, t, cond=None):
        return self.x_hat


class Operations(TorchDispatchMode):
    """Counts operations that compute: those that make a whole state, and all."""

    def __init__(self):
        super().__init__()
        self.whole = self.all = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ not in VIEWS:
            self.all += 1
            self.whole += isinstance(out, torch.Tensor) and out.numel() == math.prod(SHAPE)
        return out


def operations(sampler, steps):
    z = torch.zeros(SHAPE)
    with torch.no_grad(), Operations() as found:
        sampler.sample(Constant(), torch.zeros(SHAPE), time_grid(schedules.VP(), steps), lambda step: z)
    return found.whole, found.all


@pytest.mark.parametrize(
    "name", [name for name in samplers.names() if samplers.build(name).evaluations_per_step is not None]
)
def test_a_step_is_a_few_operations(name):
    """An evaluation's share of one more step in the middle of a grid, set-up left out; the noise is given."""
    sampler = samplers.build(name)
    (whole, every), (whole_before, every_before) = operations(sampler, 40), operations(sampler, 20)
    evaluations = 20 * sampler.evaluations_per_step
    assert (whole - whole_before) / evaluations <= MOST_WHOLE.get(name, 4)
    assert (every - every_before) / evaluations <= MOST.get(name, 6)
