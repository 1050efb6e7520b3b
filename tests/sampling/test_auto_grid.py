"""`grid="auto"`: the same model has the same grid, it is better than a fixed one, and it is kept with a run's file."""

import json
import math
import shutil

import pytest
import torch
from laws import F64
from tiny_configs import digits_config

import diffusion
from diffusion import load
from diffusion.commands import report
from diffusion.commands.compare import compare
from diffusion.commands.options import TUNING_SECONDS
from diffusion.commands.subjects import load_subject
from diffusion.config import dump_config
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.exact import Gaussian, GaussianMixture
from diffusion.models.build import DataFacts, build_data, build_denoiser
from diffusion.models.load import FACTS
from diffusion.samplers import DDIM, ODE, Adams, Ancestral, ExponentialSDE, Heun
from diffusion.sampling import auto_grid as module
from diffusion.sampling.auto_grid import auto_grid, trajectories, tuning
from diffusion.sampling.sample import grid_for
from diffusion.schedules import EDM, Cosine
from diffusion.storage import runs, tensor_files

SCHEDULE = Cosine(log_snr_min=-10.0, log_snr_max=14.0)


def mixture(schedule=SCHEDULE):
    means = 2.0 * torch.rand(8, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) - 1.0
    return GaussianMixture(means, torch.full((8,), 0.08, dtype=F64), schedule)


def error(model, sampler, grid):
    """Against the exact flow, from starts that no grid was tuned on."""
    noise = torch.randn(256, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    x_1 = model.schedule.prior_std * noise
    path = torch.tensor([model.schedule.t_max, model.schedule.t_min, 0.0], dtype=F64)
    truth = ODE("dopri8", 1e-8).sample(model, x_1, path)
    return float((sampler.sample(model, x_1, grid) - truth).square().mean().sqrt())


@pytest.mark.parametrize(("steps", "most"), [(5, 0.04), pytest.param(10, 0.012, marks=pytest.mark.slow)])
def test_few_steps_are_better_spent_on_its_grid(steps, most):
    """8 modes of deviation 0.08: below the best known errors, 4.4e-2 and 1.9e-2, and half of any fixed grid's."""
    model, sampler = mixture(), Adams()
    found = error(model, sampler, auto_grid(model, sampler, steps))
    default, *fixed = [
        error(model, sampler, grid_for(model, sampler, steps, name))
        for name in ("shifted", "log-snr", "karras", "angle")
    ]
    assert found < min(most, default, 0.5 * min(fixed)), (found, default, fixed)


@pytest.mark.parametrize("steps", [5, 10])
def test_a_search_gone_wrong_is_worth_the_default(steps, quick_tuning, monkeypatch):
    """What the search and the equal shares find is held against the default grid on samples that neither has seen."""
    ill = torch.linspace(-9.9, -9.0, steps, dtype=F64)
    monkeypatch.setattr(module, "_search", lambda *given: ill)
    monkeypatch.setattr(module, "equal_error", lambda *given: ill)
    model = mixture()
    assert torch.allclose(auto_grid(model, Adams(), steps), grid_for(model, Adams(), steps, None), rtol=0.0, atol=1e-4)


def test_tuning_keeps_to_its_time_and_says_how_far_it_is(quick_tuning):
    model, told = mixture(), []
    with tuning(1e-9, lambda done, total: told.append((done, total))):
        grid = auto_grid(model, Adams(), 6)
        assert len(told) <= 3
        assert told[-1][0] == told[-1][1] > 0
        told.clear()
        assert torch.equal(auto_grid(model, Adams(), 6), grid), "known"
        assert not told
    assert torch.allclose(grid, grid_for(model, Adams(), 6, None), rtol=0.0, atol=1e-4), "nothing better was found"
    assert list(module.known_grids(model)) == [f"{Adams()} against shifted, 6 steps, within 1e-09 s"]
    with tuning(progress=lambda done, total: told.append((done, total))):
        assert not torch.equal(auto_grid(model, Adams(), 6), grid), "with more time it is tuned again"
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 40


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), Ancestral(), ODE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_is_a_grid_for_every_sampler_and_path(sampler, steps, monkeypatch):
    monkeypatch.setattr(module, "_EVALUATIONS", 40)
    model = mixture(EDM())
    grid = auto_grid(model, sampler, steps)
    assert grid.dtype == F64
    assert grid.shape == (steps + 1,)
    assert bool((grid.diff() < 0).all())
    assert float(grid[0]) == model.schedule.t_max
    assert float(grid[-1]) == 0.0


def test_the_same_model_has_the_same_grid_and_pays_once(quick_tuning):
    one, other = mixture(), mixture()
    with count_evaluations(one) as count:
        first = auto_grid(one, Adams(), 6)
        paid = count.rows
        again = auto_grid(one, Adams(), 6)
        assert count.rows == paid > 0
    assert torch.equal(first, again)
    assert torch.equal(first, auto_grid(other, Adams(), 6))
    auto_grid(one, Adams(3), 6)
    assert len(module.known_grids(one)) == 2, "another solver has its own"


def test_other_weights_have_another_grid(quick_tuning):
    model = mixture()
    before = auto_grid(model, Ancestral(), 6)
    model.stds.fill_(0.5)
    assert not torch.equal(before, auto_grid(model, Ancestral(), 6))


def test_samplers_with_noise_of_one_order_share_a_grid(quick_tuning):
    model = mixture()
    with count_evaluations(model) as count:
        grid = auto_grid(model, ExponentialSDE(order=1), 9)
        paid = count.rows
        assert torch.equal(auto_grid(model, ExponentialSDE(order=1, eta=0.5), 9), grid)
        assert count.rows == paid


def test_the_trajectories_are_those_of_the_flow():
    """Data N(m, c^2): the flow is affine, and where c = 1/2 the velocity is constant in size, so |m''| = |m|."""
    model = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5, SCHEDULE)
    found = trajectories(model, 8)
    alpha, sigma = SCHEDULE(torch.tensor(SCHEDULE.t_max, dtype=F64))
    truth = model.mean + 0.5 / torch.sqrt((0.5 * alpha) ** 2 + sigma**2) * (found.x_1 - alpha * model.mean)
    assert torch.allclose(found.x, truth, atol=2e-5)
    later = trajectories(model, 3, start=5)
    assert torch.equal(later.x_1, found.x_1[5:])
    assert math.isfinite(float(found.density(2).sum()))


def test_sample_takes_it_by_name(quick_tuning):
    model = mixture()
    x = diffusion.sample(model, 4, Adams(), steps=6, grid="auto", dtype=F64)
    assert torch.equal(x, diffusion.sample(model, 4, Adams(), grid=auto_grid(model, Adams(), 6), dtype=F64))


@pytest.fixture
def run(tmp_path, quick_tuning):
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    config = digits_config(tmp_path, "sampling.grid=auto")
    torch.manual_seed(0)
    run = runs.create_run(tmp_path / "runs", config.name)
    state = build_denoiser(config, facts).state_dict()
    tensor_files.save_model(run / runs.MODEL, state, dump_config(config), {FACTS: facts.to_json(), "step": "6"})
    return run


def test_a_run_keeps_its_grids_beside_its_model(run):
    model = load(run)
    x = model.sample(2, sampler="ddim", steps=4, grid="auto")
    kept = json.loads((run / "model.grids.json").read_text())
    (log_snrs,) = kept["log_snrs"].values()
    assert len(log_snrs) == 4
    again = load(run)
    with again.counted() as count:
        assert torch.equal(again.sample(2, sampler="ddim", steps=4, grid="auto"), x)
    assert count.rows == 2 * 4, "nothing is tuned again"
    resolved = again.resolved({"sampler": "ddim", "steps": 4, "grid": "auto"})
    assert len(resolved["grid"]) == 5
    assert torch.equal(again.sample(2, **resolved), x)


def test_pictures_that_nobody_limits_have_a_limit_and_tell(run, tmp_path, monkeypatch):
    seen, original = [], module._tuned
    monkeypatch.setattr(module, "_tuned", lambda *args: seen.append(module._TUNING.get()) or original(*args))
    model = load(run)
    report.write_pictures(run, model, build_data(model.config), model.config)
    shutil.rmtree(run / runs.SAMPLES)
    (run / "model.grids.json").unlink()
    compare._samples(load_subject(str(run), str(tmp_path)))
    assert [tuning.seconds for tuning in seen] == [TUNING_SECONDS] * 2
    assert all(tuning.progress is not None for tuning in seen)


@pytest.mark.parametrize("text", ["", "{", '{"weights": "other", "log_snrs": {}}', "[]"])
def test_a_file_of_other_weights_is_replaced(run, text):
    path = run / "model.grids.json"
    path.write_text(text)
    load(run).sample(1, sampler="ddim", steps=3, grid="auto")
    assert len(json.loads(path.read_text())["log_snrs"]) == 1


def test_weights_that_change_are_sampled_on_a_fixed_grid(run):
    assert load(run).sampling_settings({})["grid"] == "auto"
    assert load(run).sampling_settings_in_training()["grid"] == "cauchy"
