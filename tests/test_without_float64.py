"""A device without float64, as a Mac's `mps`: networks alone are there, and what is trained, drawn and measured is the
same as on the CPU, of each family."""

import pytest
import torch
from on_device import Classifier
from pretended_device import DEVICE, Device, Pretended

import diffusion
from diffusion.baselines.decoders import DiscretizedGaussian
from diffusion.baselines.eae import EAE
from diffusion.baselines.vae import VAE
from diffusion.denoisers import NetworkDenoiser, condition
from diffusion.denoisers.guidance import Autoguidance, ClassifierGuided, PathClassifier
from diffusion.denoisers.inverse_problems import METHODS, Mask, Observation
from diffusion.denoisers.levels import LevelDenoiser
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.networks import UNet
from diffusion.networks.autoencoder import Decoder, Encoder
from diffusion.networks.parts import VECTOR, Part
from diffusion.numerics import placement
from diffusion.schedules import DDPM, Cosine, Learned

SHAPE, LEVELS = (1, 4, 4), 17


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(placement, "WITHOUT_FLOAT64", {DEVICE.type})
    with Device(float64=False) as found:
        yield found


def unet(classes=0, channels=1, out=None):
    torch.manual_seed(0)
    network = UNet(
        channels, 8, (1,), blocks=1, attention=(), dropout=0.0, num_classes=classes, image_size=4, out_channels=out
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def denoiser(schedule=None, classes=0):
    return NetworkDenoiser(unet(classes), schedule or Cosine(), "v", SHAPE, num_classes=classes).eval()


def on_device(network):
    """Whether all of a network is there."""
    return all(isinstance(p.data, Pretended) or p.device == DEVICE for p in network.parameters())


def test_the_device_refuses_float64_and_holds_networks_alone(device):
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, dtype=torch.float64).to(DEVICE)
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, device=DEVICE).double()
    learned = NetworkDenoiser(unet(), Learned(), "v", SHAPE).to(DEVICE)
    assert on_device(learned.network)
    assert learned.schedule.log_density.device.type == "cpu"
    assert placement.device_of(learned).type == "cpu"
    assert placement.weights_on(learned.network) == DEVICE
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    assert learned(x, 0.5).dtype == torch.float64
    gradient = torch.autograd.grad(learned(x.requires_grad_(), 0.5).sum(), x)[0]
    assert gradient.dtype == torch.float64
    assert bool((gradient != 0).any())
    assert device.counts["to_device"] > 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "adaptive-sde" else ())  # it takes many small steps
        for name in diffusion.samplers.names()
    ],
)
def test_a_sampler_draws_what_it_draws_on_the_cpu(device, name):
    given = {"tolerance": 1e-2} if name == "ode" else {} if name == "adaptive-sde" else {"steps": 4}
    expected = diffusion.sample(denoiser(), 2, sampler=name, **given)
    device.clear()
    model = denoiser().to(DEVICE)
    found = diffusion.sample(model, 2, sampler=name, **given)
    assert found.device.type == "cpu"
    near = 0.02 if name == "adaptive-sde" else 1e-4  # whose steps depend on the last digits
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
    assert device.counts["to_device"] >= 2, "the network was asked there"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("elbo", {"evaluations": 4}),
        ("elbo-discrete", {"steps": 8, "evaluations": 4}),
        ("immse", {"evaluations": 4}),
        ("ode", {"tolerance": 0.1}),
        ("ode", {"solver": "euler", "steps": 3, "trace": "exact"}),
        pytest.param("ode", {"tolerance": 1e-2, "dequantization": "truncated-normal"}, marks=pytest.mark.slow),
    ],
)
def test_a_likelihood_is_that_of_the_cpu(device, method, options):
    images = torch.randint(0, LEVELS, (2, *SHAPE), dtype=torch.uint8)
    expected = diffusion.log_likelihood(denoiser(), images, method=method, levels=LEVELS, **options)
    found = diffusion.log_likelihood(denoiser().to(DEVICE), images, method=method, levels=LEVELS, **options)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["labels", "autoguidance", "classifier", *METHODS])
def test_what_steers_a_draw_runs_there(device, kind):
    def steered(where):
        model = denoiser(classes=3).to(where)
        options = {}
        if kind == "labels":
            options = {"label": [0, 2], "guidance": 2.0}
        elif kind == "autoguidance":
            model = Autoguidance(model, denoiser(classes=3).to(where), 2.0)
        elif kind == "classifier":
            classifier = PathClassifier(Classifier(), Cosine()).to(where)
            model, options = ClassifierGuided(model, classifier, 3, 2.0), {"label": 1}
        else:
            kept = torch.ones(SHAPE, dtype=torch.bool)
            kept[..., 2:] = False
            operator = Mask(kept)
            model = METHODS[kind](model, Observation(operator, operator(torch.ones(1, *SHAPE)), 0.1))
        return diffusion.sample(model, 2, sampler="ddim", steps=3, **options)

    device.clear()
    found = steered(DEVICE)
    assert device.counts["to_device"] > 0
    torch.testing.assert_close(found, steered("cpu"), rtol=1e-4, atol=1e-4)


def test_a_condition_there_is_looked_at_on_the_cpu(device, monkeypatch):
    monkeypatch.setattr(condition, "as_tensor", lambda value: value)  # which takes nothing of the device `meta`
    part = Part("age", VECTOR, 1, mean=(40.0,), std=(10.0,))
    given = torch.tensor([[30.0], [50.0]])
    found = condition.of_parts((part,), given.to(DEVICE), 2)
    assert torch.equal(found.parts[0].cpu(), given)
    with pytest.raises(UserError, match="sample 1 is more than 1e\\+06 deviations"):
        condition.of_parts((part,), torch.tensor([[30.0], [5e8]]).to(DEVICE), 2)


def test_levels_an_adopted_network_and_a_chain_of_levels(device):
    places = Dequantizer(LEVELS).places()
    torch.manual_seed(0)
    network = UNet(1, 8, (1,), blocks=1, attention=(), dropout=0.0, image_size=4, out_channels=LEVELS)
    by_levels = LevelDenoiser(network, Cosine(), places, SHAPE).eval()
    adopted = diffusion.adopt(unet(), path="ddpm", predicts="eps", time="index", shape=SHAPE, levels=LEVELS)
    for model in (by_levels, denoiser(DDPM(50)), adopted):
        here = diffusion.sample(model, 2, sampler="ancestral", steps=4)
        there = diffusion.sample(model.to(DEVICE), 2, sampler="ancestral", steps=4)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["vae", "eae"])
def test_an_autoencoder_draws_and_measures(device, family):
    shape, observation = (1, 8, 8), DiscretizedGaussian(LEVELS)
    images = torch.randint(0, LEVELS, (3, *shape), dtype=torch.uint8)

    def made():
        torch.manual_seed(0)
        if family == "vae":
            return VAE(shape, 3, observation, Encoder(shape, 6, 4, (1,), 1), Decoder(shape, 3, 2, 4, (1,), 1)).eval()
        eae = EAE(shape, 3, LEVELS, Encoder(shape, 3, 4, (1,), 1), Decoder(shape, 3, 1, 4, (1,), 1), 2)
        eae.proposal_std.fill_(0.1)
        return eae.eval()

    here, there = made(), made().to(DEVICE)
    assert on_device(there.encoder)
    torch.testing.assert_close(there.sample(3), here.sample(3), rtol=1e-5, atol=1e-5)
    for method, options in (("iwae", {"samples": 8}), ("elbo", {"samples": 4}), ("ais", {"steps": 2, "chains": 1})):
        found, expected = (model.log_likelihood(images, method=method, **options) for model in (there, here))
        torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-3)
