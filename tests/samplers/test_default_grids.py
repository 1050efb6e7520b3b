"""The grid that a sampler walks when none is asked for: never worse than one uniform in log-SNR that ends at 9.25.

Deterministic samplers are held to the exact flow, those that draw noise to the mean log-density of what they draw
(less is beside the modes, more is too near their middle), along the same noise; both on mixtures of seeds that nothing
was chosen on.
"""

import math

import laws
import pytest
import torch
from laws import F64
from tiny_configs import digits_config

import diffusion
from diffusion.denoisers import exact
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import DiffusionModel
from diffusion.samplers import ODE, SDEdit, build, names
from diffusion.sampling.sample import grid_for
from diffusion.schedules import Cosine, time_grid

SCHEDULE = Cosine(log_snr_min=-10.0, log_snr_max=14.0)
FIXED = [name for name in names() if not build(name).is_adaptive]


def mixture(shape, low, high, seed):
    generator = torch.Generator().manual_seed(seed)
    means = 2.0 * torch.rand(8, *shape, dtype=F64, generator=generator) - 1.0
    return exact.GaussianMixture(means, low + (high - low) * torch.rand(8, dtype=F64, generator=generator), SCHEDULE)


@pytest.fixture(scope="module")
def cases():
    """By kind of data: mixtures, starts, and where the flow takes them."""
    ends = torch.tensor([SCHEDULE.t_max, SCHEDULE.t_min, 0.0], dtype=F64)
    found = {}
    for kind, shape, low, high, n in [("plane", (2,), 0.08, 0.08, 64), ("images", (3, 8, 8), 0.1, 0.1, 24)]:
        models = [mixture(shape, low, high, seed) for seed in range(3100, 3103)]
        starts = [laws.seeded(n, *shape, seed=seed) * SCHEDULE.prior_std for seed in range(3)]
        truth = [ODE("dopri8", 1e-7).sample(*case, ends) for case in zip(models, starts, strict=True)]
        found[kind] = list(zip(models, starts, truth, strict=True))
    return found


def errors(sampler, grid, case):
    """Of each sample: from the flow, the square; of samplers with noise the nats that are missing or too many."""
    model, x_1, truth = case
    if sampler.is_stochastic:
        x = diffusion.sample(model, len(x_1), sampler, grid=grid, noise=x_1)
        return model.log_prob(truth) - model.log_prob(x)
    return (sampler.sample(model, x_1, grid) - truth).square().flatten(1).mean(1)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_it_is_not_worse_than_log_snr(name, steps, cases):
    """By at most 15 %, in geometric mean over samples of three mixtures of a kind: of the few that end in another mode
    than the flow's one more or less is chance. Where the grids are the same there is no more to be found."""
    sampler = build(name)
    plain = time_grid(SCHEDULE, steps, "log-snr", 9.25)
    for kind, drawn in cases.items():
        own = grid_for(drawn[0][0], sampler, steps, None)
        if torch.equal(own, plain):
            return
        pairs = [(errors(sampler, own, case), errors(sampler, plain, case)) for case in drawn]
        if sampler.is_stochastic:
            mine, other = (torch.cat(column) for column in zip(*pairs, strict=True))
            chance = 3.0 * float((mine - other).std()) / math.sqrt(len(mine))
            assert abs(float(mine.mean())) < 1.15 * abs(float(other.mean())) + chance, (kind, chance)
        else:
            ratio = torch.cat([0.5 * (mine / other).log() for mine, other in pairs]).mean().exp()
            assert float(ratio) < 1.15, (kind, ratio)


def test_a_sampler_around_another_takes_its_grid():
    x = laws.seeded(2)
    assert [SDEdit(x, inner=build(name)).default_grid for name in ("abm", "sde")] == ["shifted", "log-snr"]
    assert build("ddim", eta=1.0).default_grid == build("adams", space="data").default_grid == "log-snr"


@pytest.mark.parametrize("name", ["abm", "sde", "heun", "unipc"])
@pytest.mark.parametrize("steps", [20, 80])
def test_what_a_run_records_is_what_is_drawn_with_no_grid(name, steps, tmp_path):
    """The settings name the grid and an end that is not the name's own; a grid that is asked for keeps its own end."""
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    config = digits_config(tmp_path)
    model = DiffusionModel(build_denoiser(config, facts), config, facts)
    settings = model.sampling_settings({"sampler": name, "steps": steps})
    assert settings["grid"] == build(name).default_grid
    recorded = [settings.get(key) for key in ("steps", "grid", "log_snr_end")]
    unsaid = grid_for(model.denoiser, build(name), steps, None)
    assert torch.equal(grid_for(model.denoiser, build(name), *recorded), unsaid)
    end = 3.0 * math.log(steps) if name == "abm" else max(9.25, 2.25 * math.log(steps))
    assert model.effective_settings(settings)["log_snr_end"] == pytest.approx(end, abs=1e-4)
    asked = model.sampling_settings({"sampler": name, "steps": steps, "grid": "log-snr"})
    assert "log_snr_end" not in asked
    assert model.effective_settings(asked)["log_snr_end"] == 9.25
