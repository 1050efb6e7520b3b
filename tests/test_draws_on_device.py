"""Drawing and measuring as a GPU would see them: a sampler's loop of fixed steps neither waits for it nor copies."""

import pytest
import torch
from pretended_device import DEVICE, Device

import diffusion
from diffusion.baselines.decoders import DiscretizedGaussian
from diffusion.baselines.vae import VAE
from diffusion.denoisers import NetworkDenoiser
from diffusion.networks import UNet
from diffusion.networks.autoencoder import Decoder, Encoder
from diffusion.schedules import DDPM, Cosine

SHAPE, LEVELS = (1, 4, 4), 17
FIXED = [name for name in diffusion.samplers.names() if name not in ("adaptive-sde", "ode")]


@pytest.fixture
def device(monkeypatch):
    autocast = torch.autocast  # has no type for the pretended device
    monkeypatch.setattr(torch, "autocast", lambda kind, *given, **more: autocast("cpu", *given, **more))
    with Device() as found:
        yield found


def make(schedule=None, classes=0):
    network = UNet(1, 8, (1,), blocks=1, attention=(), dropout=0.0, num_classes=classes, image_size=4)
    denoiser = NetworkDenoiser(network, schedule or Cosine(), "v", SHAPE, num_classes=classes)
    return denoiser.to(DEVICE).eval()


def between(device, first, last, draw):
    """What happened between two steps of a sampler."""
    seen = []
    draw(lambda step, *_: seen.append((dict(device.counts), len(device.places))))
    (before, start), (after, end) = seen[first], seen[last]
    counts = {name: after[name] - before.get(name, 0) for name in after}
    return {name: n for name, n in counts.items() if n and name != "operations"}, device.places[start:end]


@pytest.mark.parametrize("name", FIXED)
def test_the_loop_of_a_sampler_neither_waits_nor_copies(device, name):
    denoiser = make()
    counts, places = between(
        device, 2, 6, lambda told: diffusion.sample(denoiser, 3, sampler=name, steps=8, callback=told)
    )
    assert counts == {}, places


def test_nor_does_that_of_ddpms_own_levels(device):
    denoiser = make(DDPM(100))
    counts, places = between(
        device, 2, 6, lambda told: diffusion.sample(denoiser, 3, sampler="ancestral", steps=8, callback=told)
    )
    assert counts == {}, places


def test_nor_does_guidance(device):
    denoiser = make(classes=3)
    counts, places = between(
        device, 2, 6,
        lambda told: diffusion.sample(denoiser, 3, sampler="ddim", steps=8, label=1, guidance=2.0, callback=told),
    )  # fmt: skip
    assert counts == {}, places


def test_the_whole_of_a_draw_costs_the_same_at_any_number_of_steps(device):
    """A copy of the samples' numbers, and a look whether the result is finite."""
    denoiser = make()
    for steps in (8, 16):
        device.clear()
        drawn = diffusion.sample(denoiser, 3, sampler="ddim", steps=steps)
        counts = [device.counts[name] for name in ("to_device", "waits", "to_host")]
        assert counts == [1, 1, 0], device.places
    assert drawn.device == DEVICE


def test_what_is_drawn_there_is_what_the_cpu_draws(device):
    torch.manual_seed(0)
    denoiser = make()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1)
    there = diffusion.sample(denoiser, 3, sampler="abm", steps=5)
    here = diffusion.sample(make_like(denoiser), 3, sampler="abm", steps=5)
    torch.testing.assert_close(there.to("cpu"), here, rtol=1e-5, atol=1e-5)


def make_like(denoiser):
    """The same network on the CPU."""
    network = UNet(1, 8, (1,), blocks=1, attention=(), dropout=0.0, image_size=4)
    network.load_state_dict({name: value.to("cpu") for name, value in denoiser.network.state_dict().items()})
    return NetworkDenoiser(network, Cosine(), "v", SHAPE).eval()


@pytest.mark.parametrize(("method", "options"), [("elbo", {"evaluations": 4}), ("immse", {"evaluations": 4})])
def test_a_bound_waits_for_no_value(device, method, options):
    images = torch.randint(0, LEVELS, (3, *SHAPE), dtype=torch.uint8)
    found = diffusion.log_likelihood(make(), images, method=method, levels=LEVELS, **options)
    assert bool(torch.isfinite(found.log_prob).all())
    assert device.counts["waits"] == 0, device.places


def test_the_ode_reads_a_step_size_and_whether_all_is_finite(device):
    images = torch.randint(0, LEVELS, (3, *SHAPE), dtype=torch.uint8)
    found = diffusion.log_likelihood(make(), images, method="ode", levels=LEVELS, tolerance=1e-2)
    assert bool(torch.isfinite(found.log_prob).all())
    assert device.counts["waits"] <= 3 * found.nfe, device.places


def test_an_autoencoder_draws_and_measures(device):
    shape, observation = (1, 8, 8), DiscretizedGaussian(LEVELS)
    vae = VAE(shape, 3, observation, Encoder(shape, 6, 4, (1,), 1), Decoder(shape, 3, 2, 4, (1,), 1)).to(DEVICE)
    assert vae.sample(4).device == DEVICE
    device.clear()
    found = vae.log_likelihood(torch.randint(0, LEVELS, (3, *shape), dtype=torch.uint8).to(DEVICE), samples=8)
    assert bool(torch.isfinite(found.log_prob).all())
    assert device.counts["waits"] <= 3, device.places
