"""Evaluations are counted where the network or the closed form is, whatever is around it."""

import pytest
import torch
from torch import nn

from diffusion.denoisers import Clipped, NetworkDenoiser, Retimed, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import UserError
from diffusion.schedules import EDM, VE, VP


class _Halve(nn.Module):
    def forward(self, x, c_noise, labels):
        return 0.5 * x


def test_evaluations_are_rows_of_the_innermost_denoiser():
    x_t, t = torch.zeros(7, 2), torch.tensor(0.5)
    network = NetworkDenoiser(_Halve(), VP(), "eps", (2,))
    closed = exact.Gaussian(torch.zeros(2), torch.ones(2), VP())
    for inner in (network, closed):
        for model in (inner, Clipped(inner), Retimed(inner, EDM()), Clipped(Retimed(Clipped(inner), VE()))):
            with count_evaluations(model) as count:
                model(x_t, t)
                assert count.rows == 7
                for question in ("eps", "score", "v", "velocity"):
                    getattr(model, question)(x_t[:3], t)
                assert count.rows == 7 + 4 * 3
            model(x_t, t)
            assert count.rows == 19  # the context is closed


def test_two_denoisers_in_one_model_are_both_counted():
    """A pair, as guidance by a weaker model makes it, counts 2."""

    class Pair(Clipped):
        def __init__(self, first, second):
            super().__init__(first)
            self.second = second

        def forward(self, x_t, t, cond=None):
            return 2 * self.denoiser(x_t, t, cond) - self.second(x_t, t, cond)

    first, second = (exact.Gaussian(torch.zeros(2), std, VP()) for std in (1.0, 2.0))
    model = Retimed(Pair(first, second), EDM())
    with count_evaluations(model) as count:
        model(torch.zeros(5, 2), torch.tensor(0.5))
    assert count.rows == 10


def test_a_model_without_a_denoiser_has_none():
    with pytest.raises(UserError, match="model: found a Linear without a denoiser"), count_evaluations(nn.Linear(1, 1)):
        pass


def test_counting_stops_after_an_error():
    model = exact.Gaussian(torch.zeros(2), 1.0, VP())
    with pytest.raises(RuntimeError, match="stop"), count_evaluations(model) as count:
        raise RuntimeError("stop")
    model(torch.zeros(5, 2), torch.tensor(0.5))
    assert count.rows == 0
