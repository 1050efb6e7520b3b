"""What is drawn with when nothing is said: `abm` in 20 steps on the grid `shifted`, and how good that is.

Held against the other solvers on the grids that are common for them, on mixtures that nothing was chosen on, and
against the exact flow on data of many kinds.
"""

import math

import laws
import pytest
import torch
from laws import F64
from tiny_configs import digits_config

import diffusion
from diffusion.denoisers import exact
from diffusion.likelihood import flow_density
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import DiffusionModel
from diffusion.samplers import ABM, ODE, build
from diffusion.sampling.sample import grid_for
from diffusion.schedules import EDM, VE, VP, Cosine, Rectified, time_grid

SCHEDULE = Cosine(log_snr_min=-10.0, log_snr_max=14.0)


def mixture(seed, schedule=SCHEDULE, std=0.08, modes=8):
    means = 2.0 * torch.rand(modes, 2, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 1.0
    return exact.GaussianMixture(means, torch.full((modes,), std, dtype=F64), schedule)


def flow(model, n, seed=0, tolerance=1e-7):
    """Starting states and where the exact flow takes them."""
    x_1 = model.schedule.prior_std * laws.seeded(n, *model.shape, seed=seed)
    ends = torch.tensor([model.schedule.t_max, model.schedule.t_min, 0.0], dtype=F64)
    return x_1, ODE("dopri8", tolerance, 20_000).sample(model, x_1, ends)


def rms(sampler, grid, model, case):
    x_1, truth = case
    return float((sampler.sample(model, x_1, grid) - truth).square().mean().sqrt())


def test_it_is_what_is_drawn_with_when_nothing_is_said():
    model = mixture(0)
    named = diffusion.sample(model, 3, "abm", steps=20, grid="shifted", log_snr_end=3 * math.log(20))
    assert torch.equal(diffusion.sample(model, 3), named)
    assert torch.equal(diffusion.sample(model, 3, "abm"), named)
    assert torch.equal(diffusion.sample(model, 3, ABM()), named)
    ode = diffusion.sample(model, 3, "ode", tolerance=1e-3)
    assert torch.equal(diffusion.sample(model, 3, tolerance=1e-3), ode), "a tolerance is asked of a solver that has one"


def test_the_dimension_is_the_number_of_all_values_of_a_sample(monkeypatch):
    model = exact.Gaussian(torch.full((3, 2, 2), 0.1, dtype=F64), torch.full((3, 2, 2), 0.5, dtype=F64), SCHEDULE)
    centre, scale = 2.5 - 0.5 * math.log(12), 2.5 + 0.2 * math.log(12)
    placed = torch.atan((SCHEDULE.log_snr(grid_for(model, ABM(), 6, None)[:-1]) - centre) / scale)
    torch.testing.assert_close(placed, torch.linspace(float(placed[0]), float(placed[-1]), 6, dtype=F64))
    seen = []
    monkeypatch.setattr(flow_density, "time_grid", lambda *given: seen.append(given[4]) or time_grid(*given))
    flow_density.flow_log_density(
        model, laws.seeded(2, 3, 2, 2), flow_density.Solve(method="rk4", steps=8, grid="shifted")
    )
    assert seen == [12]


def test_so_it_is_for_a_run_and_for_the_shipped_model(tmp_path):
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    for *settings, sampler, steps, grid in [
        ("sampling.sampler=abm", "sampling.steps=null", "abm", 20, "shifted"),
        ("sampling.sampler=unipc", "sampling.steps=null", "unipc", 50, "log-snr"),
        ("sampling.sampler=unipc", "sampling.steps=7", "sampling.grid=karras", "unipc", 7, "karras"),
    ]:
        config = digits_config(tmp_path, *settings)
        found = DiffusionModel(build_denoiser(config, facts), config, facts).sampling_settings({})
        assert (found["sampler"], found["steps"], found["grid"]) == (sampler, steps, grid)
    shipped = diffusion.load("pretrained:digits")
    assert shipped.sampling_settings({}) == {"sampler": "abm", "steps": 20, "eta": None, "grid": "shifted"}
    assert shipped.sampling_settings({"sampler": "sde"})["steps"] == 50
    assert shipped.sampling_settings({"tolerance": 1e-3})["sampler"] == "ode"


@pytest.fixture(scope="module")
def unseen():
    """Mixtures of seeds that nothing was chosen on, with their flows; the quadratic times of VP are DEIS's own."""
    models = [mixture(seed, VP()) for seed in range(7000, 7006)]
    return [(model, flow(model, 48, seed)) for seed, model in enumerate(models)]


@pytest.mark.parametrize("budget", [5, 10, 20, pytest.param(50, marks=pytest.mark.slow)])
def test_it_is_nearer_to_the_flow_than_other_solvers_on_their_grids(budget, unseen):
    """Geometric means over 6 mixtures: 0.3 to 0.6 of the best of the others."""
    schedule = VP()

    def mean(sampler, grid):
        logs = [math.log(rms(sampler, grid, model, case)) for model, case in unseen]
        return math.exp(sum(logs) / len(logs))

    mine = mean(ABM(), time_grid(schedule, budget, "shifted", dimension=2))
    for name, options in [
        ("unipc", {}), ("unipc", {"predictor": 3}), ("dpm-solver++2m", {}), ("deis", {}), ("deis", {"predictor": 2}),
    ]:  # fmt: skip
        sampler = build(name, **options)
        for grid in ("log-snr", "karras", "quadratic"):
            other = mean(sampler, time_grid(schedule, budget - sampler.starting_evaluations, grid))
            assert mine < other, (name, options, grid, mine, other)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Rectified(), VE(sigma_min=1e-3)], ids=laws.name)
def test_it_is_never_bad(schedule):
    """Narrow, wide and far modes; more steps are nearer, and few are not lost."""
    far = exact.GaussianMixture(laws.seeded(5, 32).sign(), torch.full((5,), 0.03, dtype=F64), schedule)
    for model in (mixture(1, schedule, 0.01), mixture(1, schedule, 0.5), laws.gaussian(schedule), far):
        case = flow(model, 64, tolerance=1e-5)  # far below the bounds
        few, some, many = (rms(ABM(), grid_for(model, ABM(), steps, None), model, case) for steps in (5, 10, 50))
        assert few < 0.4  # of far modes; the median of 20 pairs of a solver and a grid is 0.44 to 0.52 there
        assert some < 0.15
        assert many < 0.01


def test_a_tolerance_without_a_sampler_in_the_call_is_the_flow_whatever_the_run_draws_with(tmp_path):
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    for own in ("abm", "unipc", "adaptive-sde"):
        config = digits_config(tmp_path, f"sampling.sampler={own}")
        model = DiffusionModel(build_denoiser(config, facts), config, facts)
        expected = own if own == "adaptive-sde" else "ode"
        assert model.sampling_settings({"tolerance": 1e-3})["sampler"] == expected
