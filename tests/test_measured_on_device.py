"""Measuring as a GPU would see it: what is found is what the CPU finds, and what is waited for does not grow with the
evaluations, except where a solver chooses its steps."""

import pytest
import torch
from on_device import LEVELS, SHAPE, Scaling, make
from pretended_device import DEVICE

import diffusion
from diffusion.baselines.annealed import bidirectional
from diffusion.baselines.decoders import DiscretizedGaussian
from diffusion.baselines.eae import EAE
from diffusion.baselines.vae import VAE
from diffusion.metrics import ClassifierFeatures, QualityReference
from diffusion.models import noisy_classifier
from diffusion.networks.autoencoder import Decoder, Encoder


def images(n, shape=SHAPE, seed=0):
    return torch.randint(0, LEVELS, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def costs(device):
    return [device.counts[kind] for kind in ("to_device", "to_host", "waits")]


@pytest.mark.parametrize(
    ("method", "options"), [("elbo", {}), ("immse", {}), ("elbo-discrete", {"steps": 16})], ids=lambda value: str(value)
)
def test_an_evaluation_of_a_bound_costs_the_copy_of_its_times(device, method, options):
    found = []
    for evaluations in (4, 8):
        model, options = make(Scaling()).to(DEVICE), {**options, "evaluations": evaluations, "levels": LEVELS}
        device.clear()
        there = diffusion.log_likelihood(model, images(3), method=method, **options)
        found.append(costs(device))
        here = diffusion.log_likelihood(make(Scaling()), images(3), method=method, **options)
        torch.testing.assert_close(there.log_prob, here.log_prob, rtol=1e-5, atol=1e-3)
    (copied, back, waits), more = found
    assert more == [copied + 4, back, waits], device.places
    assert copied <= 7
    assert back <= 5
    assert waits == 0


@pytest.mark.parametrize("options", [{"tolerance": 1e-2}, {"solver": "heun2", "steps": 3}])
def test_the_ode_reads_a_step_size_and_whether_all_is_finite(device, options):
    there = diffusion.log_likelihood(make().to(DEVICE), images(3), method="ode", levels=LEVELS, **options)
    here = diffusion.log_likelihood(make(), images(3), method="ode", levels=LEVELS, **options)
    torch.testing.assert_close(there.log_prob, here.log_prob, rtol=1e-4, atol=1e-2)
    assert device.counts["waits"] <= 4 * there.nfe, device.places


IMAGES = (1, 8, 8)


def autoencoder(family):
    torch.manual_seed(0)
    if family == "vae":
        encoder, decoder = Encoder(IMAGES, 6, 4, (1,), 1), Decoder(IMAGES, 3, 2, 4, (1,), 1)
        return VAE(IMAGES, 3, DiscretizedGaussian(LEVELS), encoder, decoder).eval()
    made = EAE(IMAGES, 3, LEVELS, Encoder(IMAGES, 3, 4, (1,), 1), Decoder(IMAGES, 3, 1, 4, (1,), 1), 2)
    made.proposal_std.fill_(0.1)
    return made.eval()


@pytest.mark.parametrize("family", ["vae", "eae"])
@pytest.mark.parametrize(
    ("method", "few", "many"),
    [
        ("iwae", {"samples": 8}, {"samples": 120}),
        ("elbo", {"samples": 8}, {"samples": 120}),
        ("ais", {"steps": 2, "chains": 2, "leapfrog": 2}, {"steps": 4, "chains": 2, "leapfrog": 2}),
    ],
)
def test_a_bound_of_an_autoencoder_is_read_at_its_end(device, family, method, few, many):
    """The images and the numbers of their noise are copied, the weights of samples of 50 at once are read; of an EAE
    whether it is fitted, and its scale for the protocol."""
    model, data = autoencoder(family).to(DEVICE), images(3, IMAGES)
    for options in (few, many):
        device.clear()
        there = model.log_likelihood(data.to(DEVICE), method=method, **options)
        here = autoencoder(family).log_likelihood(data, method=method, **options)
        torch.testing.assert_close(there.log_prob, here.log_prob, rtol=1e-5, atol=1e-3)
        copied, back, waits = costs(device)
        assert copied == 2, device.places
        assert back <= 3, device.places
        assert waits == (2 if family == "eae" else 0), device.places


def test_data_of_the_model_are_bracketed_there(device):
    there, here = (bidirectional(autoencoder("vae").to(where), 2, 3, 2, 2) for where in (DEVICE, "cpu"))
    torch.testing.assert_close(there.lower, here.lower, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(there.upper, here.upper, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("family", ["vae", "eae"])
def test_what_an_autoencoder_draws_is_looked_at_once(device, family):
    for prior in ("normal", "hubs"):
        model = autoencoder(family).to(DEVICE)
        device.clear()
        there = model.sample(3, prior=prior)
        assert costs(device) == [1, 0, 1], device.places
        torch.testing.assert_close(there.to("cpu"), autoencoder(family).sample(3, prior=prior), rtol=1e-5, atol=1e-5)


def test_the_density_of_an_eae_is_fitted_there(device):
    """No step of the fit waits; the codes go to the CPU for the mixture, which comes back."""
    found, data = [], images(40, IMAGES)
    for steps in (2, 4):
        model = autoencoder("eae").to(DEVICE)
        device.clear()
        model.fit_after_training(data.to(DEVICE), steps=steps)
        found.append(costs(device))
        here = autoencoder("eae")
        here.fit_after_training(data, steps=steps)
        for name in ("raw_scale", "proposal_std", "mixture_means"):
            torch.testing.assert_close(getattr(model, name).to("cpu"), getattr(here, name), rtol=1e-4, atol=1e-5)
    (copied, back, waits), more = found
    assert more[0] <= copied <= 6, device.places
    assert more[1:] == [back, waits] == [1, 0], device.places


def test_a_classifier_of_noisy_images_is_trained_there(device):
    """A step waits for nothing; its noisy images, their levels and labels are copied."""
    data, labels, trained = images(20, IMAGES), torch.arange(20) % 3, {}
    for where in ("cpu", DEVICE):
        torch.manual_seed(0)
        network = noisy_classifier.build(IMAGES, 3, base_channels=4, multipliers=(1,), dropout=0.0).to(where)
        device.clear()
        noisy_classifier.train(network, data, labels, LEVELS, steps=3, batch_size=8)
        trained[where] = noisy_classifier.by_noise_level(network, data, labels, LEVELS, [0])[0]
    assert costs(device) == [3 * 3 + 2, 1, 0], device.places
    assert trained[DEVICE] == pytest.approx(trained["cpu"], rel=1e-4)


def test_the_quality_of_samples_is_that_of_the_cpu(device):
    """The figures and what is refused are read: as often for more images, but for the greatest level of each batch."""
    torch.manual_seed(0)
    extractor = ClassifierFeatures(IMAGES, LEVELS, 10, "small", dims=4)
    data, fresh = images(40, IMAGES, 1), images(20, IMAGES, 2)
    found = []
    for n in (24, 48):
        figures = {}
        for where in ("cpu", DEVICE):
            reference = QualityReference.of(data, extractor, "x", "train", LEVELS, fresh, device=where)
            device.clear()
            figures[where] = reference.measure(images(n, IMAGES, 3), batch_size=24).figures()
        found.append(device.counts["waits"])
        assert figures[DEVICE] == pytest.approx(figures["cpu"], rel=1e-4, abs=1e-9, nan_ok=True)
    assert found[1] - found[0] <= 17, "eight more groups are left out of the Frechet distance in turn, two values each"
    assert found[0] < 90, device.places
