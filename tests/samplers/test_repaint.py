"""RePaint: what is known stays, resampling comes nearer to the exact posterior, and what it costs."""

from itertools import pairwise

import pytest
import torch
from laws import F64, FOUR_SCHEDULES, f64, name, seeded

from diffusion.denoisers import exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import UserError
from diffusion.numerics.random import Noise
from diffusion.samplers import DDIM, Ancestral, RePaint
from diffusion.sampling.sample import sample
from diffusion.schedules import VP, Cosine, time_grid

KEPT = torch.tensor([True, False])


def mixture(schedule):
    """Two modes, of which a first entry of 0.9 leaves the second alone likely; before it is seen both are equal."""
    return exact.GaussianMixture(f64([[-0.6, -0.8], [0.9, 0.7]]), f64([0.3, 0.3]), schedule)


def wrong_mode(schedule, resamples, n=300):
    x = sample(mixture(schedule), n, RePaint(f64([0.5, 0.0]), KEPT, resamples=resamples), steps=20, dtype=F64)
    assert bool((x[:, 0] == 0.5).all()), "what is known is there exactly"
    return float((x[:, 1] < 0).double().mean())


@pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
def test_resampling_comes_nearer_to_the_posterior(schedule):
    """p(mode | first entry 0.5) by Bayes' rule is 0.006; without resampling the second entry is chosen half blindly."""
    model = mixture(schedule)
    distances = (0.5 - model.means[:, 0]).square() / (2 * 0.3**2)
    posterior = float((-distances).softmax(0)[0])
    once, often = wrong_mode(schedule, 1), wrong_mode(schedule, 8)
    assert posterior < 0.01
    assert once > 0.15
    assert often < 0.5 * once


def test_one_walk_is_replacement_by_hand():
    """resamples = 1: ancestral steps, each followed by a draw of q(x_s | known) where it is known."""
    schedule, known = VP(), f64([0.5, 0.0])
    model = mixture(schedule)
    grid = time_grid(schedule, 6)
    draws = [seeded(4, 2, seed=i) for i in range(12)]
    x = x_1 = seeded(4, 2, seed=99)
    for i, (t, s) in enumerate(pairwise(grid[:-1])):
        step = Ancestral().coefficients(schedule, t[None], s[None])
        x = float(step.from_x_t) * x + float(step.from_x) * model(x, t) + float(step.fresh) * draws[2 * i]
        alpha, sigma = schedule(s)
        x = torch.where(KEPT, alpha * known + sigma * draws[2 * i + 1], x)
    expected = torch.where(KEPT, known, model(x, grid[-2]))
    found = RePaint(known, KEPT, resamples=1).sample(model, x_1, grid, lambda step: draws[step])
    torch.testing.assert_close(found, expected)


def test_the_way_back_has_the_law_of_the_path():
    """With nothing known but an entry that is independent of the rest, that rest has its own law."""
    model = exact.Gaussian(f64([0.0, 0.7]), f64([1.0, 0.4]), Cosine())
    x = sample(model, 2000, RePaint(f64([0.3, 0.0]), KEPT, jump=4, resamples=3), steps=60, dtype=F64)[:, 1]
    assert float(x.mean()) == pytest.approx(0.7, abs=0.04)
    assert float(x.std()) == pytest.approx(0.4, abs=0.04)


def test_no_noise_is_used_twice_and_the_evaluations_are_as_declared():
    model, seen = mixture(VP()), []

    def noise(step):
        seen.append(step)
        return seeded(2, 2, seed=step)

    sampler = RePaint(f64([0.5, 0.0]), KEPT, DDIM(), jump=3, resamples=4)
    reached = []
    with count_evaluations(model) as count:
        sampler.sample(
            model, seeded(2, 2), time_grid(VP(), 8), noise, callback=lambda step, t, x, x_hat: reached.append(step)
        )
    assert sorted(seen) == list(range(len(seen)))
    assert count.rows == 2 * (7 * sampler.evaluations_per_step + 1)
    assert reached == list(range(8))
    assert sampler.is_stochastic


def test_a_sample_depends_on_its_index_alone():
    model, sampler = mixture(VP()), RePaint(f64([0.5, 0.0]), KEPT, resamples=2)
    x_1, grid = seeded(5, 2), time_grid(VP(), 6)
    together = sampler.sample(model, x_1, grid, Noise(0, torch.arange(5), (2,), F64))
    alone = sampler.sample(model, x_1[3:4], grid, Noise(0, torch.tensor([3]), (2,), F64))
    torch.testing.assert_close(together[3:4], alone)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="steps: found 0; must be at least 1"):
        DDIM(steps=0)
    with pytest.raises(UserError, match=r"kept: found torch\.float32; needs booleans"):
        RePaint(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="resamples: found 0"):
        RePaint(f64([0.5, 0.0]), KEPT, resamples=0)
    with pytest.raises(UserError, match=r"found shapes \(3,\) and \(2,\)"):
        sample(mixture(VP()), 2, RePaint(f64([0.5, 0.0, 0.0]), KEPT), steps=4)
