"""Where a grid leaves the path: what of narrow data is kept there, by every sampler.

The last step takes the mean, x = E[x | x_t]: of data N(m, c^2) with noise of sigma / alpha = exp(-end / 2) left, it is
of the deviation c^2 / sqrt(c^2 + exp(-end)), however exact the steps before.
"""

import math

import laws
import pytest
import torch
from laws import F64
from tiny_configs import digits_config

import diffusion
from diffusion.denoisers import exact
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import DiffusionModel
from diffusion.samplers import build, names
from diffusion.samplers.affine_law import affine_law
from diffusion.sampling.sample import grid_for
from diffusion.schedules import EDM, VE, VP

NARROW = 0.01
FIXED = [name for name in names() if not build(name).is_adaptive]
# Of those that cannot be read off: a Langevin step's length goes by the norm of the whole score, which many dimensions
# make all but constant.
DRAWN, DIMENSIONS = "predictor-corrector", 64


def kept(name, schedule, steps, end, std=NARROW, grid="log-snr"):
    """The deviation that is drawn, over that of the data: read off, where all is affine."""
    if name == DRAWN:
        model = exact.Gaussian(torch.full((DIMENSIONS,), laws.MEAN, dtype=F64), laws.f64(std), schedule)
        x = diffusion.sample(model, 64, name, steps, grid=grid, log_snr_end=end, dtype=F64)
        return float((x - laws.MEAN).std()) / std
    model, sampler = exact.Gaussian(laws.f64([laws.MEAN]), laws.f64([std]), schedule), build(name)
    grid = grid_for(model, sampler, steps, grid, end)
    alpha, sigma = schedule(grid[0])
    law = affine_law(sampler, model, grid)
    mean, variance = law.push(alpha * laws.MEAN, (alpha * std) ** 2 + sigma**2)
    assert abs(float(mean) - laws.MEAN) < 1e-3, name
    return float(variance.sqrt()) / std


def floor(end, std=NARROW):
    return std / math.sqrt(std**2 + math.exp(-end))


# At each end every other sampler; the slow tests take the others there.
ENDS = [
    pytest.param(end, name, marks=pytest.mark.slow if (i + j) % 2 else ())
    for i, end in enumerate((None, 14.0)) for j, name in enumerate(FIXED)
]  # fmt: skip


@pytest.mark.parametrize(("end", "name"), ENDS)
def test_of_a_narrow_gaussian_that_is_kept_which_the_end_leaves(end, name):
    expected = floor(9.25 if end is None else end)
    found = [kept(name, VP(), steps, end) / expected for steps in (75, 300)]
    chance = 4.0 / math.sqrt(2 * 64 * DIMENSIONS) if name == DRAWN else 0.0
    assert abs(found[1] - 1.0) < 0.02 + chance, (found, expected)
    assert abs(found[1] - 1.0) < max(0.5 * abs(found[0] - 1.0), 1e-4) + chance, found


@pytest.mark.parametrize("name", FIXED)
def test_on_the_default_grid_more_steps_remove_that_error_too(name):
    """Its end goes with the number of steps: 0.01 is drawn as 0.01."""
    found = [abs(kept(name, EDM(sigma_min=1e-4), steps, None, grid=None) - 1.0) for steps in (75, 300)]
    chance = 4.0 / math.sqrt(2 * 64 * DIMENSIONS) if name == DRAWN else 0.0
    assert found[1] < 0.05 + chance, found
    assert found[1] < max(0.6 * found[0], 1e-3) + chance, found


@pytest.mark.parametrize("name", FIXED)
def test_a_path_that_ends_sooner_keeps_what_it_can(name):
    """VE's path ends at its least noise, 0.01, and so does the grid."""
    assert kept(name, VE(), 200, 20.0) == pytest.approx(math.sqrt(0.5), rel=0.03)
    assert kept(name, VE(sigma_min=1e-4), 200, 14.0) == pytest.approx(floor(14.0), rel=0.03)


@pytest.mark.parametrize("name", names())
def test_a_narrow_mode_beside_wide_ones_is_drawn_as_wide_as_it_is(name):
    """Half of the samples lie in the mode of deviation 0.01, and are spread as it is."""
    means, stds = laws.seeded(2, DIMENSIONS).sign(), laws.f64([NARROW, 0.3])
    model = exact.GaussianMixture(means, stds, EDM(), laws.f64([0.5, 0.5]))
    n, options = (40, {"tolerance": 0.002}) if name == "adaptive-sde" else (100, {})
    x = diffusion.sample(model, n, name, steps=200, log_snr_end=12.0, dtype=F64, batch_size=n, **options)
    near = x[(x - means[0]).norm(dim=1) < (x - means[1]).norm(dim=1)]
    assert len(near) / n == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))
    deviation = float((near - means[0]).square().mean().sqrt()) / NARROW
    assert deviation == pytest.approx(floor(12.0), abs=0.04 + 4 / math.sqrt(2 * near.numel())), name


def test_an_end_that_no_grid_can_have_is_refused():
    model = laws.gaussian(VP())
    for end, what in ((-30.0, "found -30; must be above the path's start"), (math.nan, "found nan")):
        with pytest.raises(UserError, match=what):
            diffusion.sample(model, 1, "ddim", steps=3, log_snr_end=end)
    times = torch.tensor([1.0, 0.5, 0.0])
    for grid, whose in (("auto", "the grid 'auto'"), (times, "a grid of times"), (times.tolist(), "a grid of times")):
        with pytest.raises(UserError, match=f"log_snr_end: found 8; {whose} has its own end"):
            diffusion.sample(model, 1, "ddim", grid=grid, log_snr_end=8.0)


def test_an_adaptive_solver_walks_to_the_path_s_end_or_to_the_one_given():
    model = exact.Gaussian(laws.f64([laws.MEAN]), laws.f64([NARROW]), VP())
    x_1 = torch.tensor([[-1.0], [1.0]], dtype=F64)
    for end, expected in ((None, floor(14.0)), (9.0, floor(9.0))):
        x = diffusion.sample(model, 2, "ode", noise=x_1, tolerance=1e-7, log_snr_end=end)
        assert float(x.diff(dim=0)) / 2 / NARROW == pytest.approx(expected, rel=1e-3)


def test_a_run_s_own_end_goes_with_its_own_grid_and_the_record_shows_it(tmp_path):
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    config = digits_config(tmp_path, "sampling.log_snr_end=7")
    model = DiffusionModel(build_denoiser(config, facts), config, facts)
    own, other = model.sampling_settings({}), model.sampling_settings({"grid": "karras"})
    assert own["log_snr_end"] == model.effective_settings(own)["log_snr_end"] == 7.0
    assert "log_snr_end" not in other
    assert model.effective_settings(other)["log_snr_end"] == 9.25
    assert not torch.equal(model.sample(1, **own), model.sample(1, **{**own, "log_snr_end": 9.0}))
    with pytest.raises(UserError, match=r"sampling\.log_snr_end: found 7; sampling\.grid 'auto' chooses its own"):
        digits_config(tmp_path, "sampling.log_snr_end=7", "sampling.grid=auto")
