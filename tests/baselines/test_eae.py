import math

import pytest
import torch
from torch import nn

from diffusion.baselines.eae import EAE
from diffusion.baselines.entropy import knn_entropy
from diffusion.baselines.gaussianity import gaussianity
from diffusion.errors import UserError
from diffusion.networks.autoencoder import Decoder, Encoder

SHAPE, D = (1, 8, 8), 2


def images_of(n, seed=0):
    """Ramps of random slope and height, two degrees of freedom, and noise; 17 levels."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, n, 1, 1, 1, generator=generator)
    ramp = torch.linspace(0, 1, 8).expand(n, *SHAPE)
    noise = 0.2 * torch.rand(n, *SHAPE, generator=generator)
    return ((0.5 * a * ramp + 0.29 * b + noise) * 17).to(torch.uint8)


def build(seed=0):
    torch.manual_seed(seed)
    widths = {"base_channels": 8, "multipliers": (1, 2)}
    return EAE(SHAPE, D, 17, Encoder(SHAPE, D, **widths), Decoder(SHAPE, D, 1, **widths), mixture_components=3)


@pytest.fixture(scope="module")
def trained():
    model, images = build(), images_of(512)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(120):
        rows = torch.randperm(512, generator=torch.Generator().manual_seed(step))[:128]
        optimizer.zero_grad()
        model.loss(images[rows], entropy_weight=0.5).loss.backward()
        optimizer.step()
    model.fit_after_training(images, steps=60)
    return model.eval()


def test_loss_is_squared_error_minus_the_entropy_of_normalised_codes():
    model, images = build(), images_of(32)
    losses = model.loss(images, entropy_weight=0.7, k=4)
    raw = model.encoder((2.0 * images.float() + 1.0) / 17 - 1.0)
    z = (raw - raw.mean(0)) / (raw.var(0, correction=0) + 1e-5).sqrt()
    squares = (model.decoder(z) - ((2.0 * images.float() + 1.0) / 17 - 1.0)).square().flatten(1).sum(1)
    torch.testing.assert_close(losses.reconstruction, squares, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.entropy, knn_entropy(z, 4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.loss, squares.mean() - 0.7 * losses.entropy, rtol=1e-4, atol=1e-4)


def test_the_entropy_reaches_the_encoder():
    model, images = build(), images_of(32)
    for weight in (0.0, 1.0):
        model.zero_grad()
        model.loss(images, entropy_weight=weight).loss.backward()
        gradients = [p.grad.clone() for p in model.encoder.parameters()]
        if weight == 0.0:
            without = gradients
    assert any(not torch.allclose(a, b) for a, b in zip(gradients, without, strict=True))


def test_training_reconstructs_and_makes_the_codes_gaussian(trained):
    images = images_of(512)
    before, after = build().train().loss(images, 0.5), trained.loss(images, 0.5)
    assert after.reconstruction.mean() < 0.2 * before.reconstruction.mean()
    report = gaussianity(trained.codes(images))
    torch.testing.assert_close(report.mean, torch.zeros(D).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(report.std, torch.ones(D).double(), rtol=0, atol=1e-3)
    # two uniform factors would have a negentropy of 0.35 and a Kolmogorov-Smirnov distance above 0.05
    assert report.negentropy < 0.15
    assert report.largest_correlation < 0.25
    assert report.excess_kurtosis.abs().max() < 0.8


def test_density_is_a_lower_bound_of_the_declared_model(trained):
    """In two latent dimensions log p(x) is a sum over a grid of z."""
    images = images_of(6, seed=1)
    side = torch.linspace(-3.5, 3.5, 101)
    grid = torch.cartesian_prod(side, side)
    log_prior = -0.5 * grid.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(7 / 100)
    with torch.no_grad():
        params = trained.decode(grid)
        exact = torch.stack(
            [
                (trained.observation.log_prob(image.expand(len(grid), -1, -1, -1), params) + log_prior)
                .double()
                .logsumexp(0)
                for image in images
            ]
        )
    iwae = trained.log_likelihood(images, samples=2000)
    elbo = trained.log_likelihood(images, method="elbo", samples=200)
    assert float((iwae.log_prob - exact).abs().max()) < 0.6
    assert abs(float((iwae.log_prob - exact).mean())) < 0.25
    assert float((elbo.log_prob - exact).mean()) < 0.05
    assert iwae.kind == "lower bound"
    assert "declared model" in iwae.protocol["model"]
    assert iwae.protocol["scale"] == pytest.approx(float(trained.raw_scale.exp()), rel=0.2)
    assert float(iwae.bits_per_dim.mean()) < math.log2(17)


def test_fitted_density_is_near_its_best(trained):
    """Neither another scale nor another width of the proposal does better on the training images."""
    images = images_of(128)

    def mean_bound():
        return float(trained.log_likelihood(images, samples=32).log_prob.mean())

    best = mean_bound()
    scale, std = trained.raw_scale.clone(), trained.proposal_std.clone()
    for moved, factor in [(0.3, 1.0), (-0.3, 1.0), (0.0, 2.0), (0.0, 0.5)]:
        trained.raw_scale.copy_(scale + moved)
        trained.proposal_std.copy_(std * factor)
        assert mean_bound() < best
    trained.raw_scale.copy_(scale)
    trained.proposal_std.copy_(std)


def test_samples_from_both_priors(trained):
    for prior in ("normal", "mixture", "hubs"):
        sample = trained.sample(20, seed=1, prior=prior)
        assert sample.shape == (20, *SHAPE)
        assert sample.abs().max() <= 1.0
        assert torch.allclose(trained.sample(5, seed=1, prior=prior), sample[:5], atol=1e-5)
    drawn = trained.draw_latents("mixture", 0, torch.arange(20000), torch.device("cpu"))
    codes = trained.codes(images_of(512))
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(codes.T), rtol=0, atol=0.07)


def test_what_was_fitted_is_in_the_state(trained):
    copy = build(seed=9).eval()
    copy.load_state_dict(trained.state_dict())
    images = images_of(4, seed=2)
    torch.testing.assert_close(
        copy.log_likelihood(images, samples=20).log_prob, trained.log_likelihood(images, samples=20).log_prob
    )
    assert torch.equal(copy.sample(3, prior="mixture"), trained.sample(3, prior="mixture"))
    ais, wanted = (
        model.log_likelihood(images, method="ais", steps=5, chains=2, leapfrog=2) for model in (copy, trained)
    )
    torch.testing.assert_close(ais.log_prob, wanted.log_prob)


def test_codes_do_not_depend_on_the_batch(trained):
    images = images_of(7)
    torch.testing.assert_close(trained.codes(images, batch_size=2), trained.codes(images), rtol=1e-4, atol=1e-5)
    assert isinstance(trained.norm, nn.BatchNorm1d)
    assert not trained.norm.affine


def test_bad_arguments_are_refused():
    model, images = build(), images_of(4)
    for call, message in [
        (lambda: model.log_likelihood(images), "declared model is not fitted yet"),
        (lambda: model.sample(2, prior="mixture"), "mixture is not fitted yet"),
        (lambda: model.sample(2, prior="gaussian"), "prior: 'gaussian' is not known; accepted: normal, mixture"),
        (lambda: model.fit_mixture(images[:2]), "mixture_components: found 3 for 2 images"),
        (lambda: model.loss(images[:3], 1.0), "k: found 3 for 3 points"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_the_fit_after_training_is_bounded_and_told(monkeypatch):
    monkeypatch.setattr("diffusion.baselines.eae.MIXTURE_CODES", 40)
    model, images, lines, seen = build(), images_of(100), [], {}
    for name in ("fit_statistics", "fit_mixture", "fit_density"):
        whole = getattr(model, name)
        monkeypatch.setattr(model, name, lambda x, *rest, n=name, f=whole: (seen.update({n: x}), f(x, *rest))[1])
    model.fit_after_training(images, steps=2, tell=lines.append)
    # the statistics are of all images: they make means and variances exactly 0 and 1
    assert {name: len(x) for name, x in seen.items()} == {"fit_statistics": 100, "fit_mixture": 40, "fit_density": 32}
    codes = model.codes(images)
    torch.testing.assert_close(codes.mean(0), torch.zeros(D), atol=1e-4, rtol=0)
    assert [line.split()[1] for line in lines] == ["statistics", "mixture"]
    # a few of many are drawn from anywhere, since images may be sorted by class; few are taken as they are
    assert not torch.equal(seen["fit_mixture"], images[:40])
    assert "40 codes" in lines[1]
    model.fit_after_training(images[:30], steps=2)
    assert torch.equal(seen["fit_mixture"], images[:30])


def test_the_density_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr("diffusion.baselines.eae._TOLD_EVERY", 3)
    model, images, lines = build(), images_of(16), []
    model.fit_density(images, steps=4, tell=lines.append)
    assert len(lines) == 1
    assert "step 3/4" in lines[0]
    assert "16 images" in lines[0]


def test_the_declared_density_is_fitted_to_all_classes_of_sorted_images():
    """Flat images, then noise, twice as many as a batch: a fit whose last batches are of one class alone differs."""
    low, high = images_of(64) // 8, images_of(64, seed=1)
    model, scales = build(), []
    for images in (torch.cat((low, high)), torch.cat((high, low))):
        model.fit_density(images, steps=8)
        scales.append(float(model.raw_scale))
    assert scales[0] == pytest.approx(scales[1], rel=0.1)
