"""A fitted sampler: without corrections it is Adams's method, and fitted it is better where it was not fitted."""

import json
import math

import pytest
import torch
from laws import F64
from PIL import Image
from tiny_configs import digits_config

import diffusion
from diffusion import load
from diffusion.commands.app import command, sample
from diffusion.config import dump_config
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.exact import Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import FACTS
from diffusion.samplers import ABM, ODE, Adams
from diffusion.sampling import auto_grid as grid_module
from diffusion.sampling import fit as fit_module
from diffusion.sampling.auto_grid import auto_grid, trajectories
from diffusion.sampling.fit import Family, fit_sampler, from_numbers, to_numbers
from diffusion.sampling.fitted import Fitted
from diffusion.schedules import EDM, Cosine, time_grid
from diffusion.storage import runs, tensor_files

SCHEDULE = Cosine(log_snr_min=-10.0, log_snr_max=14.0)
LOG_SNRS = (-10.0, -3.0, 0.0, 2.0, 4.5)


def mixture(seed, shape=(2,), modes=8, schedule=SCHEDULE):
    generator = torch.Generator().manual_seed(seed)
    means = 2.0 * torch.rand(modes, *shape, dtype=F64, generator=generator) - 1.0
    spread = 0.0 if shape == (2,) else 0.12
    stds = 0.08 + spread * torch.rand(modes, dtype=F64, generator=generator)
    return GaussianMixture(means, stds, schedule)


def errors(model, pairs):
    """RMS against the exact flow, from starts that nothing was fitted on."""
    noise = torch.randn(256, *model.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    x_1 = model.schedule.prior_std * noise
    path = torch.tensor([model.schedule.t_max, model.schedule.t_min, 0.0], dtype=F64)
    truth = ODE("dopri8", 1e-8).sample(model, x_1, path)
    return [float((s.sample(model, x_1, grid) - truth).square().mean().sqrt()) for s, grid in pairs]


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM()], ids=["cosine", "edm"])
def test_without_corrections_it_is_adams(schedule):
    model, sampler = mixture(0, schedule=schedule), Fitted(LOG_SNRS)
    x_1 = schedule.prior_std * torch.randn(16, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    grid = sampler.own_grid(schedule)
    torch.testing.assert_close(sampler.sample(model, x_1, grid), Adams().sample(model, x_1, grid))


def test_a_correction_and_the_ending_do_what_the_formula_says():
    """On one Gaussian of deviation 0.5 Adams's outputs m are zero but for the mean: two steps by hand."""
    mean, k = 0.3, 0.5
    model = Gaussian(torch.full((1,), mean, dtype=F64), k, SCHEDULE)
    sampler = Fitted((-2.0, 1.0), ((0.25,),), (0.1, -0.2), (0.5,))
    times = sampler.times(SCHEDULE)
    alpha, sigma = SCHEDULE(times)
    r, phi = torch.hypot(alpha * k, sigma), torch.atan2(sigma, alpha * k)
    alpha_1, sigma_1 = SCHEDULE(torch.tensor(SCHEDULE.t_max, dtype=F64))
    start = torch.hypot(alpha_1 * k, sigma_1)
    x_1 = torch.tensor([[1.7]], dtype=F64)
    x = 1.1 * r[0] / start * x_1
    x_hat = model(x, times[0])
    m = -r[0] / (k * sigma[0]) * (x_hat - alpha[0] * k**2 / r[0] ** 2 * x)
    y = 0.8 * r[1] / r[0] * x + 1.25 * r[1] * (phi[1] - phi[0]) * m
    expected = 0.5 * model(y, times[1]) + 0.5 * y / alpha[1]
    torch.testing.assert_close(sampler.sample(model, x_1, sampler.own_grid(SCHEDULE)), expected)


def test_it_costs_one_evaluation_a_step_and_refuses_what_it_cannot_do():
    model, sampler = mixture(0), Fitted(LOG_SNRS)
    x_1 = torch.zeros(2, 2, dtype=F64)
    with count_evaluations(model) as count:
        sampler.sample(model, x_1, sampler.own_grid(SCHEDULE))
    assert count.rows == len(x_1) * len(LOG_SNRS)
    with pytest.raises(UserError, match="its own"):
        sampler.sample(model, x_1, sampler.own_grid(SCHEDULE)[1:])
    for wrong in [{"log_snrs": (0.0,)}, {"log_snrs": (1.0, 0.0)}, {"log_snrs": (0.0, 1.0), "ending": (math.nan,)}]:
        with pytest.raises(UserError, match="log_snrs"):
            Fitted(**wrong)
    with pytest.raises(UserError, match="scales: found 1 numbers"):
        Fitted((0.0, 1.0), scales=(0.1,))
    for steps in (1, 11):
        with pytest.raises(UserError, match="2 to 10"):
            fit_sampler(model, steps)


@pytest.mark.parametrize("sampler", [Fitted(LOG_SNRS), None], ids=["plain", "fitted"])
def test_its_numbers_survive_in_one_row(sampler):
    if sampler is None:
        family = Family(torch.tensor(LOG_SNRS, dtype=F64), -10.0, 14.0)
        sampler = family.solver(torch.linspace(-0.2, 0.3, sum(family.parts), dtype=F64))
    assert from_numbers(5, json.loads(json.dumps(to_numbers(sampler)))) == sampler
    with pytest.raises(UserError, match="numbers: found 1; a fitted sampler of 5 steps has"):
        from_numbers(5, [0.0])


@pytest.fixture
def quick(monkeypatch):
    """A fit of one iteration, from a coarse reference: what it finds is not looked at."""
    monkeypatch.setattr(grid_module, "_REFERENCE_STEPS", 12)
    monkeypatch.setattr(fit_module, "_ITERATIONS", 1)
    monkeypatch.setattr(fit_module, "_ROWS", 4)


def test_the_same_model_has_the_same_fit(quick):
    one, other = (fit_sampler(mixture(3), 4) for _ in range(2))
    assert one == other


def test_sample_takes_it_by_name_and_pays_once(quick):
    model = mixture(3)
    told = []
    sampler = fit_module.fitted_to(model, 4, lambda done, most: told.append((done, most)))
    assert told == [(1, 1)]
    with count_evaluations(model) as count:
        x = diffusion.sample(model, 3, "fitted", steps=4, dtype=F64)
        assert count.rows == 3 * 4
    assert torch.equal(x, diffusion.sample(model, 3, sampler, dtype=F64))
    assert torch.equal(x, diffusion.sample(model, 3, "fitted", steps=4, numbers=to_numbers(sampler), dtype=F64))
    for wrong, message in [
        ({"steps": 50}, "steps: found 50; .* 2 to 10"),
        ({"steps": 4, "eta": 1.0}, "eta: sampler 'fitted' does not take it"),
        ({"steps": 4, "grid": "auto"}, "grid: found 'auto'; a fitted sampler has its own"),
        ({"steps": 4, "numbers": [0.0, math.nan, 1.0, 2.0]}, "log_snrs"),
    ]:
        with pytest.raises(UserError, match=message):
            diffusion.sample(model, 3, "fitted", **wrong)


@pytest.mark.parametrize("steps", [5, 10])
def test_a_fit_gone_wrong_is_worth_the_default_and_so_is_one_without_time(steps, quick, monkeypatch):
    """The default is `abm` on the grid `shifted`."""
    default, model, x_1 = time_grid(SCHEDULE, steps, "shifted", dimension=2), mixture(3), torch.ones(2, 2, dtype=F64)
    x = ABM().sample(model, x_1, default)
    with grid_module.tuning(1e-9):
        hurried = fit_module.fitted_to(mixture(3), steps)
    ill = torch.linspace(-9.9, -9.0, steps + 1, dtype=F64)
    monkeypatch.setattr(fit_module, "equal_error", lambda along, order, steps, end: ill[:steps])
    for found in (hurried, fit_module.fitted_to(mixture(3), steps)):
        assert torch.allclose(found.own_grid(SCHEDULE), default, rtol=0.0, atol=1e-5)
        assert torch.allclose(found.sample(model, x_1, found.own_grid(SCHEDULE)), x, atol=1e-4)
        assert from_numbers(steps, to_numbers(found)) == found


def make_run(folder):
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    config = digits_config(folder)
    torch.manual_seed(0)
    run = runs.create_run(folder / "runs", config.name)
    state = build_denoiser(config, facts).state_dict()
    tensor_files.save_model(run / runs.MODEL, state, dump_config(config), {FACTS: facts.to_json(), "step": "6"})
    return run


def test_a_run_keeps_it_and_a_picture_carries_it(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path)
    draw = ["--run", str(run), "--sampler", "fitted", "--steps", "3", "--n", "4", "--seed", "5", "--device", "cpu"]
    assert command(sample, [*draw, "--out", "a.png"]) == 0
    path = run / "model.grids.json"
    kept = json.loads(path.read_text())
    assert list(kept["log_snrs"]) == ["fitted 3, 3 steps"]
    model = load(run)
    with model.counted() as count:
        x = model.sample(2, sampler="fitted", steps=3)
    assert count.rows == 2 * 3, "nothing is fitted again"
    path.unlink()  # the record alone holds what the picture was drawn with
    monkeypatch.setattr(fit_module, "fit_sampler", None)
    capsys.readouterr()
    assert command(sample, ["--from", "a.png", "--device", "cpu"]) == 0
    assert "the same pixels as a.png" in capsys.readouterr().out
    assert not path.exists()
    with Image.open("a.png") as image:
        assert image.text["sampler"] == "fitted"
    assert torch.equal(x, model.sample(2, **model.resolved({"sampler": "fitted", "steps": 3})))


def test_numbers_of_a_damaged_file_are_replaced(quick, tmp_path):
    run = make_run(tmp_path)
    x = load(run).sample(1, sampler="fitted", steps=3)
    path = run / "model.grids.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), "log_snrs": {"fitted 3, 3 steps": [0.0]}}))
    assert torch.equal(load(run).sample(1, sampler="fitted", steps=3), x)
    assert json.loads(path.read_text()) == json.loads(kept)


def mean_errors(models, steps):
    """Geometric means over the models, of the fitted sampler and of Adams's method on the tuned grid."""
    logs = []
    for model in models:
        fitted, adams = fit_sampler(model, steps), Adams()
        pairs = [(fitted, fitted.own_grid(SCHEDULE)), (adams, auto_grid(model, adams, steps))]
        logs.append(torch.tensor(errors(model, pairs), dtype=F64).log())
    return torch.stack(logs).mean(0).exp().tolist()


@pytest.mark.parametrize("high", [14.0, 3.0])
def test_what_is_not_evaluated_again_changes_no_derivative(high):
    """The derivatives of the fit, against differences of the whole solver; also where it is kept within the path."""
    model, along = mixture(5), trajectories(mixture(5), 4)
    family = Family(torch.tensor(LOG_SNRS[1:], dtype=F64), -10.0, high)
    numbers = 0.1 * torch.randn(sum(family.parts), dtype=F64, generator=torch.Generator().manual_seed(0))
    assert len(family.stages) == len(numbers)

    def end(numbers):
        sampler = family.solver(numbers)
        return sampler.sample(model, along.x_1, sampler.own_grid(SCHEDULE))

    residual, jacobian = fit_module._jacobian(model, family, numbers, along)
    torch.testing.assert_close(residual, end(numbers) - along.x)
    for i, row in enumerate(1e-4 * torch.eye(len(numbers), dtype=F64)):
        torch.testing.assert_close(jacobian[..., i], (end(numbers + row) - end(numbers)) / 1e-4, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seeds", [(100,), pytest.param((100, 101, 102), marks=pytest.mark.slow)])
def test_five_evaluations_in_the_plane_are_half_of_the_best_known(seeds):
    """4.4e-2, and less than the tuned grid's error."""
    fitted, tuned = mean_errors([mixture(seed) for seed in seeds], 5)
    assert fitted < min(2.2e-2, tuned), (fitted, tuned)


@pytest.mark.slow
def test_five_evaluations_on_images_are_half_of_the_best_known():
    """1.2e-1, over eight mixtures: a few samples that end in another mode are the whole error of one."""
    fitted, tuned = mean_errors([mixture(seed, (3, 8, 8), 10) for seed in range(100, 108)], 5)
    assert fitted < min(6e-2, tuned), (fitted, tuned)


def test_without_steps_it_takes_five():
    model = diffusion.load("pretrained:digits")
    assert model.sampling_settings({"sampler": "fitted"}) == {"sampler": "fitted", "steps": 5}
