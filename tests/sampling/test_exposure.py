"""The size of the states of a sampler, against the law of each step in closed form."""

import math

import pytest
import torch

import diffusion
from diffusion.denoisers import exact
from diffusion.denoisers.denoiser import Denoiser
from diffusion.sampling.exposure import Exposure
from diffusion.schedules import Cosine, time_grid

STD, SIDE, N = 0.4, 16, 128
# of the ratio by Monte Carlo: 2 / (numbers drawn), in standard deviations
NOISE = math.sqrt(2.0 / (N * SIDE * SIDE))


class Shrunk(Denoiser):
    """A denoiser that is too small by a factor."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor
        self.schedule, self.shape = inner.schedule, inner.shape

    def forward(self, x_t, t, cond=None):
        return self.factor * self.inner(x_t, t, cond)


def gaussian():
    return exact.Gaussian(torch.zeros(SIDE, SIDE), torch.tensor(STD), Cosine())


def curve_of(denoiser, **options):
    exposure = Exposure(denoiser.schedule, STD**2)
    diffusion.sample(denoiser, N, batch_size=50, dtype=torch.float64, callback=exposure, **options)
    return exposure.curve()


def ddim_in_closed_form(schedule, steps, factor):
    """E x_t^2 over its value on the path at each time of the default grid: a step multiplies states by a number."""
    times = time_grid(schedule, steps, "cauchy")
    alpha, sigma = (value.tolist() for value in schedule(times.clamp(min=schedule.t_min)))
    alpha[-1], sigma[-1] = 1.0, 0.0
    square, found = alpha[0] ** 2 + sigma[0] ** 2, []
    for i in range(steps):
        gain = factor * alpha[i] * STD**2 / (alpha[i] ** 2 * STD**2 + sigma[i] ** 2)
        square *= (alpha[i + 1] * gain + sigma[i + 1] * (1 - alpha[i] * gain) / sigma[i]) ** 2
        found.append(square / (alpha[i + 1] ** 2 * STD**2 + sigma[i + 1] ** 2))
    return found


@pytest.mark.quick
@pytest.mark.parametrize(("factor", "end"), [(1.0, 0.86), (0.98, 0.74)])
def test_of_20_ddim_steps_it_is_the_product_of_the_steps(factor, end):
    """0.86 at the end for the exact model, where the solver alone is to blame; 0.74 with a denoiser 2 % too small."""
    model = Shrunk(gaussian(), factor)
    found, expected = curve_of(model, sampler="ddim", steps=20), ddim_in_closed_form(model.schedule, 20, factor)
    assert expected[-1] == pytest.approx(end, abs=0.005)
    assert len(found) == 20
    assert found[-1][0] is None
    for (_, ratio, error), value in zip(found, expected, strict=True):
        assert ratio == pytest.approx(value, abs=5 * NOISE * value)
        assert error == pytest.approx(NOISE * value, rel=0.35)


@pytest.mark.quick
def test_of_an_exact_model_and_an_accurate_solver_it_is_one_at_every_time():
    curve = curve_of(gaussian(), sampler="abm", steps=60)
    assert [point[0] for point in curve[:-1]] == sorted(point[0] for point in curve[:-1])
    assert max(abs(ratio - 1.0) for _, ratio, _ in curve) < 5 * NOISE + 2e-3
    smaller = curve_of(Shrunk(gaussian(), 0.98), sampler="abm", steps=60)
    assert smaller[-1][1] < 0.9  # the same solver: what is left is the denoiser's


@pytest.mark.quick
def test_times_that_not_all_samples_passed_are_left_out():
    exposure = Exposure(Cosine(), 1.0)
    exposure(0, 0.5, torch.ones(3, 2), None)
    exposure(1, 0.25, torch.ones(3, 2), None)
    exposure(0, 0.5, torch.ones(3, 2), None)
    (point,) = exposure.curve()
    alpha, sigma = map(float, Cosine()(torch.tensor(0.5, dtype=torch.float64)))
    assert point[1] == pytest.approx(1.0 / (alpha**2 + sigma**2))
    assert point[2] == 0.0
    assert Exposure(Cosine(), 1.0).curve() == []
