"""Schedulers of the library diffusers against our reading of them: what they draw, step by step."""

import json
import warnings

import pytest
import torch
from diffusers_pipelines import PLAIN, network_of, save  # first: without diffusers all is skipped

import diffusion
from diffusion.commands.dispatch import main
from diffusion.errors import UserError
from diffusion.models.formats import diffusers_export
from diffusion.models.formats.diffusers import SPACINGS
from diffusion.numerics.random import Noise
from diffusion.schedules.discrete import levels_drawn
from diffusion.schedules.forward_process import posterior, transition

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        ScoreSdeVeScheduler,
    )
    from diffusers.schedulers import scheduling_ddim as ddim
    from diffusers.schedulers import scheduling_ddpm as ddpm

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


SMALL = {"sample_size": 8, "block_out_channels": (32,), "down_block_types": (PLAIN,)}


def own_draw(folder, monkeypatch, noise, **given):
    """What a loaded pipeline draws by its own settings, as the network sees data, and the fresh noise of that."""
    model = diffusion.load(folder)
    settings = model.resolved(model.sampling_settings(given))
    fresh = torch.randn(1000, *noise.shape, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(Noise, "__call__", lambda self, step: fresh[step].clone())
    scale = model.adopted.convention.units[0]  # their 255 is at 1, ours at 1 - 1 / 256
    drawn = diffusion.sample(model.drawn_with, len(noise), noise=noise / scale, **settings)
    return model, scale * drawn, fresh


def their_draw(network, scheduler, noise, fresh, steps, **options):
    """The loop of their pipeline, with the same fresh noise."""
    scheduler.set_timesteps(steps)
    x, count = noise, iter(range(len(fresh)))
    monkey = [module for module in (ddpm, ddim) if hasattr(module, "randn_tensor")]
    kept = [module.randn_tensor for module in monkey]
    for module in monkey:
        module.randn_tensor = lambda shape, **_: fresh[next(count)]
    try:
        with torch.no_grad():
            for index in scheduler.timesteps:
                x = scheduler.step(network(x, index.expand(len(x))).sample, index, x, **options).prev_sample
    finally:
        for module, original in zip(monkey, kept, strict=True):
            module.randn_tensor = original
    return x


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_the_variance_of_ancestral_steps_is_theirs(tmp_path, monkeypatch, kind):
    channels = 6 if kind == "learned_range" else 3
    network = network_of({**SMALL, "out_channels": channels})
    scheduler = DDPMScheduler(num_train_timesteps=20, variance_type=kind, beta_end=0.2)
    save(tmp_path, network, scheduler)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model, ours, fresh = own_draw(tmp_path, monkeypatch, noise)
    assert model.sampling_settings({})["steps"] == 20
    expected = their_draw(network, scheduler, noise, fresh, 20)
    near = 1e-4 if "small" in kind else 2e-2  # the upper one is that of unit data, in our units and in theirs
    torch.testing.assert_close(ours, expected, rtol=near, atol=near)
    other = "upper" if "small" in kind else "lower"
    assert float((own_draw(tmp_path, monkeypatch, noise, variance=other)[1] - ours).abs().max()) > 0.05


def test_thresholding_is_theirs(tmp_path, monkeypatch):
    network = network_of(SMALL)
    with torch.no_grad():
        network.conv_out.weight.mul_(20.0)  # x_hat far beyond the range
    scheduler = DDIMScheduler(
        num_train_timesteps=100, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5
    )
    save(tmp_path, network, scheduler)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model, ours, fresh = own_draw(tmp_path, monkeypatch, noise, steps=10)
    assert (model.clip, model.threshold) == (None, (0.9, 1.5))
    expected = their_draw(network, scheduler, noise, fresh, 10, use_clipped_model_output=True)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    diffusers_export.write(model, tmp_path / "x")
    assert diffusion.load(tmp_path / "x").threshold == model.threshold
    assert main(["convert", str(tmp_path), str(tmp_path / "x.safetensors")]) == 0
    assert diffusion.load(tmp_path / "x.safetensors").threshold == model.threshold


def test_the_offset_of_steps_is_theirs(tmp_path, monkeypatch):
    network = network_of(SMALL)
    scheduler = DDIMScheduler(num_train_timesteps=100, steps_offset=3, clip_sample=False)
    save(tmp_path, network, scheduler)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model, ours, fresh = own_draw(tmp_path, monkeypatch, noise, steps=10)
    scheduler.set_timesteps(10)
    times = torch.tensor(model.sampling_settings({"steps": 10})["grid"])
    torch.testing.assert_close(times[:-1] * 100 - 1, scheduler.timesteps.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, their_draw(network, scheduler, noise, fresh, 10), rtol=1e-4, atol=1e-4)
    assert model.sampling_settings({"steps": 100})["grid"] == "leading", "no level is above the last"
    assert model.sampling_settings({"steps": 101})["grid"] == "leading", "there are no more levels: times between them"
    assert model.sampling_settings({"steps": 10, "grid": "leading"})["grid"] == "leading"


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_levels_that_are_taken_are_theirs(kind, spacing):
    """Also where the steps do not divide T. Of some steps `trailing` of theirs has one more, a level of -1."""
    for count in (10, 17, 100, 1000):
        scheduler = kind(num_train_timesteps=count, timestep_spacing=spacing, steps_offset=1)
        for steps in (1, 2, 3, 7, 9, count // 3, count // 2 + 1, count - 3, count):
            scheduler.set_timesteps(steps)
            found = levels_drawn(count, steps, SPACINGS[spacing], 1)
            assert found.tolist() == scheduler.timesteps[:steps].tolist(), (count, steps)
    with pytest.raises(UserError, match=r"^steps: found 11; the model's own sampler takes at most its 10 levels"):
        levels_drawn(10, 11, SPACINGS[spacing])


@pytest.mark.parametrize(
    ("kind", "steps", "said"),
    [
        (DDIMScheduler, 7, {"timestep_spacing": "leading", "steps_offset": 1}),
        (DDIMScheduler, 15, {"timestep_spacing": "leading", "steps_offset": 1}),  # ends at a level above the last
        (DDPMScheduler, 7, {"timestep_spacing": "leading"}),
        (DDPMScheduler, 7, {"timestep_spacing": "trailing"}),
        (DDPMScheduler, 7, {"timestep_spacing": "linspace"}),
    ],
)
def test_a_draw_of_steps_that_do_not_divide_the_levels_is_theirs(tmp_path, monkeypatch, kind, steps, said):
    network = network_of(SMALL)
    scheduler = kind(num_train_timesteps=20, beta_end=0.2, clip_sample=False, **said)
    save(tmp_path, network, scheduler)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model, ours, fresh = own_draw(tmp_path, monkeypatch, noise, steps=steps)
    torch.testing.assert_close(ours, their_draw(network, scheduler, noise, fresh, steps), rtol=1e-4, atol=1e-4)
    assert isinstance(model.sampling_settings({"steps": 10, "grid": "leading"})["grid"], str)


@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)])
def test_a_draw_that_ends_at_a_level_is_theirs(tmp_path, monkeypatch, spacing, offset):
    """`set_alpha_to_one: false`; a step from the last level to itself is left out."""
    network = network_of(SMALL)
    scheduler = DDIMScheduler(
        num_train_timesteps=100, set_alpha_to_one=False, clip_sample=False, steps_offset=offset, beta_start=0.01,
        timestep_spacing=spacing,
    )  # fmt: skip
    save(tmp_path / "a", network, scheduler)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model, ours, fresh = own_draw(tmp_path / "a", monkeypatch, noise, steps=10)
    expected = their_draw(network, scheduler, noise, fresh, 10)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    settings = model.sampling_settings({"steps": 10})
    assert (settings["steps"], settings["grid"][-1]) == (10 - (spacing == "leading" and not offset), 0.01)
    x_hat = diffusion.sample(model, 2, noise=noise / model.adopted.convention.units[0], sampler="ddim", steps=10)
    assert float((x_hat - ours).abs().max()) > 0.01, "the ends are apart"
    assert model.sampling_settings({"steps": 10, "sampler": "abm"})["grid"] == "shifted"
    diffusers_export.write(model, tmp_path / "b")
    assert diffusion.load(tmp_path / "b").ends_at_level


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"variance_type": "learned"}, "variance_type: found 'learned'; needs one of fixed_small"),
        ({"thresholding": 1}, "thresholding: found 1; needs true or false"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 2.0}, "dynamic_thresholding_ratio: found 2.0; needs"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": 1}, "set_alpha_to_one: found 1; needs true or false"),
        ({"steps_offset": -1}, "steps_offset: found -1; needs a whole number from 0"),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path, values, told):
    save(tmp_path, network_of(SMALL), DDPMScheduler())
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(UserError, match=told):
        diffusion.load(tmp_path)


def test_the_discrete_noise_levels_of_score_sde_are_those_of_the_path(tmp_path):
    """Level j of N is at t = j / (N - 1); a step to the one below has the mean of Bayes' rule, the last is x_hat."""
    count = 20
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=count, sigma_min=0.02, sigma_max=50.0)
    save(tmp_path, network_of({**SMALL, "time_embedding_type": "fourier"}), scheduler)
    schedule = diffusion.load(tmp_path).adopted.convention.path.schedule
    scheduler.set_timesteps(count)
    scheduler.set_sigmas(count)
    times = torch.arange(count).double() / (count - 1)
    torch.testing.assert_close(schedule(times)[1], scheduler.discrete_sigmas.double(), rtol=1e-5, atol=0)
    asked = schedule(scheduler.timesteps.double())[1]  # what the network is told, from t = 1 down to 1e-5
    torch.testing.assert_close(asked, scheduler.sigmas.double(), rtol=1e-4, atol=0)
    generator = torch.Generator().manual_seed(0)
    x, x_hat = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    for i, t in enumerate(scheduler.timesteps):
        j = count - 1 - i
        sigma = schedule(times[j])[1]
        score = (x_hat - x) / sigma.float() ** 2
        found = scheduler.step_pred(score, t, x, generator)
        if j == 0:
            torch.testing.assert_close(found.prev_sample_mean, x_hat, rtol=1e-4, atol=1e-5)
            continue
        bayes = posterior(schedule, times[j], times[j - 1])
        mean = bayes.from_x_t.float() * x + bayes.from_x.float() * x_hat
        torch.testing.assert_close(found.prev_sample_mean, mean, rtol=1e-4, atol=1e-4)
        fresh = (found.prev_sample - found.prev_sample_mean).square().mean()
        assert float(fresh) == pytest.approx(float(transition(schedule, times[j - 1], times[j])[1]), rel=0.3)
