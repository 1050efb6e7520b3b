import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from diffusion.baselines.annealed import bidirectional
from diffusion.baselines.decoders import Bernoulli, DiscretizedGaussian, DiscretizedLogisticMixture
from diffusion.baselines.latent_images import hubs
from diffusion.baselines.vae import VAE
from diffusion.errors import UserError
from diffusion.networks.autoencoder import Decoder, Encoder

SHAPE = (1, 8, 8)


def build(observation=None, d=3, dtype=torch.float32, shape=SHAPE):
    torch.manual_seed(0)
    observation = observation or DiscretizedGaussian(17)
    widths = {"base_channels": 8, "multipliers": (1, 2)}
    model = VAE(
        shape,
        d,
        observation,
        Encoder(shape, 2 * d, **widths),
        Decoder(shape, d, shape[0] * observation.parameters, **widths),
    )
    return model.to(dtype)


def small(dtype=torch.float64):
    """Two pixels and one latent: log p(x) is a sum over a grid of z."""
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 4), nn.Unflatten(1, (4, 1, 1)))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    nn.init.zeros_(encoder[1].weight)  # a proposal as wide as the prior: bounded weights
    nn.init.zeros_(encoder[1].bias)
    return VAE((2, 1, 1), 1, DiscretizedGaussian(4), encoder, decoder).to(dtype)


def all_images():
    a, b = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    return torch.stack([a, b], dim=-1).reshape(16, 2, 1, 1).to(torch.uint8)


def quadrature(model, images):
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    with torch.no_grad():
        rows = [model.log_prob_given(image.expand(2001, -1, -1, -1), z[:, None]) for image in images]
    prior = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) + math.log(18 / 2000)
    return torch.stack([(row + prior).logsumexp(0) for row in rows])


def toy_images(n, levels=17, seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, shape[-1]).expand(n, *shape)
    slope = torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.05 * torch.rand(n, *shape, generator=generator)
    return ((ramp * slope + noise).clamp(0, 0.999) * levels).to(torch.uint8)


def draws(b, k, d, dtype=torch.float32, seed=0):
    return torch.randn(b, k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_likelihood_is_a_distribution_and_all_methods_agree_with_quadrature():
    model, images = small(), all_images()
    exact = quadrature(model, images)
    assert float(exact.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    iwae = model.log_likelihood(images, samples=2000)
    ais = model.log_likelihood(images, method="ais", steps=60, chains=8, leapfrog=4)
    elbo = model.log_likelihood(images, method="elbo", samples=500)
    for estimate, bound in ((iwae, 5e-2), (ais, 0.3)):
        error = estimate.log_prob - exact
        assert error.abs().max() < bound
        assert (error.abs() < 5.0 * estimate.std_error).all()
    assert float((elbo.log_prob - exact).mean()) < -0.01
    assert {e.kind for e in (iwae, ais, elbo)} == {"lower bound"}
    assert iwae.levels == 4
    assert iwae.dims == 2
    assert iwae.protocol["model"] == "VAE"


def test_loss_is_minus_the_elbo_and_the_importance_weighted_bound():
    model, images = small(), all_images()
    eps = draws(16, 4000, 1, torch.float64)
    with torch.no_grad():
        single = torch.stack([model.loss(images, eps[:, i : i + 1]).loss for i in range(200)]).mean(0)
        many = model.loss(images, eps).loss
    elbo = model.log_likelihood(images, method="elbo", samples=2000)
    torch.testing.assert_close(-single, elbo.log_prob, rtol=0, atol=0.3)
    assert abs(float((single + elbo.log_prob).mean())) < 0.06
    torch.testing.assert_close(-many, quadrature(model, images), rtol=0, atol=0.05)
    losses = model.loss(images, eps[:, :1])
    torch.testing.assert_close(losses.loss, losses.reconstruction + losses.kl)
    doubled = model.loss(images, eps[:, :1], beta=2.0)
    torch.testing.assert_close(doubled.loss - losses.loss, losses.kl)


def test_free_bits_put_a_floor_under_each_dimension():
    model, images = build(), toy_images(12)
    eps = draws(12, 1, 3)
    plain, floored = model.loss(images, eps), model.loss(images, eps, free_bits=100.0)
    torch.testing.assert_close(floored.loss - floored.reconstruction, torch.full((12,), 300.0))
    torch.testing.assert_close(model.loss(images, eps, free_bits=0.0).loss, plain.loss)
    floored.loss.sum().backward()
    # below the floor the loss presses on nothing but the reconstruction
    gradient = model.encoder.dense.weight.grad.clone()
    model.zero_grad()
    (-model.log_prob_given(images, model_latents(model, images, eps))).sum().backward()
    torch.testing.assert_close(gradient, model.encoder.dense.weight.grad)


def model_latents(model, images, eps):
    mean, std = model.proposal(images)
    return mean + std * eps[:, 0]


@pytest.mark.parametrize(
    "observation", [DiscretizedLogisticMixture(17, 3), DiscretizedGaussian(17), Bernoulli()], ids=str
)
def test_training_learns(observation):
    model = build(observation)
    images = toy_images(32) if observation.levels > 2 else (toy_images(32) > 5).to(torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = float(model.loss(images, draws(32, 1, 3)).loss.mean().detach())
    for step in range(50):
        optimizer.zero_grad()
        loss = model.loss(images, draws(32, 1, 3, seed=step)).loss.mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * before
    measured = model.log_likelihood(images, samples=10)
    assert float(measured.bits_per_dim.mean()) < before / (64 * math.log(2.0))


def test_samples_are_keyed_by_seed_and_index():
    model = build(DiscretizedLogisticMixture(17, 2))
    for output in ("mean", "draw"):
        images = model.sample(7, seed=2, output=output)
        assert images.shape == (7, *SHAPE)
        assert images.abs().max() <= 1.0
        torch.testing.assert_close(model.sample(7, seed=2, output=output, batch_size=2), images, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.sample(3, seed=2, output=output), images[:3], rtol=0, atol=1e-5)
        assert not torch.allclose(model.sample(7, seed=3, output=output), images)
    assert model.training


def test_draws_stand_at_the_centres_of_levels_and_have_the_mean():
    model = small()
    images, means = model.sample(4000, output="draw"), model.sample(4000)
    centres = (2.0 * torch.arange(4) + 1.0) / 4 - 1.0
    assert torch.isin(images, centres.double()).all()
    torch.testing.assert_close(images.mean(0), means.mean(0), rtol=0, atol=0.06)
    counts = torch.stack(
        [(model.observation.dequantizer.quantize(images) == im).flatten(1).all(1).sum() for im in all_images()]
    )
    expected = 4000 * quadrature(model, all_images()).exp()
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 1).all()


def test_bidirectional_bounds_hold_on_its_own_images():
    model = small()
    bracket = bidirectional(model, 60, steps=10, chains=4, leapfrog=3)
    exact = quadrature(model, bracket.x)
    assert bracket.x.dtype == torch.uint8
    assert float((bracket.lower - exact).mean()) < 0.03
    assert float((bracket.upper - exact).mean()) > -0.03
    assert bracket.gap < 0.5


def test_evaluation_does_not_depend_on_the_batch():
    model, images = build(dtype=torch.float64), toy_images(5)
    for options in ({"samples": 60}, {"method": "elbo", "samples": 10}, {"method": "ais", "steps": 4, "chains": 2}):
        whole = model.log_likelihood(images, **options)
        torch.testing.assert_close(model.log_likelihood(images, batch_size=2, **options).log_prob, whole.log_prob)


def test_the_hub_of_some_points_is_that_which_most_others_are_near():
    """Against scikit-learn's neighbours; and the codes of the prior `hubs` are of the pool of their own index."""
    points = torch.randn(6, 40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for own, found in zip(points, hubs(points, 3), strict=True):
        rows = NearestNeighbors(n_neighbors=3).fit(own.numpy()).kneighbors(return_distance=False)
        counts = torch.from_numpy(rows).flatten().bincount(minlength=40)
        assert torch.equal(found, own[counts.argmax()])
    model = build()
    drawn = model.draw_latents("hubs", 3, torch.arange(40), torch.device("cpu"))
    assert torch.equal(model.draw_latents("hubs", 3, torch.arange(35, 37), torch.device("cpu")), drawn[35:37])
    pools = torch.randn(50, 128, 20, generator=torch.Generator().manual_seed(1))
    assert float(hubs(pools).square().mean()) < 0.9 * float(pools.square().mean())  # they are near the centre


def test_bad_arguments_are_refused():
    model, images = build(), toy_images(2)
    for call, message in [
        (lambda: model.log_likelihood(images, method="iwea"), "Did you mean 'iwae'"),
        (lambda: model.log_likelihood(images[..., :7]), r"images: found shape \(1, 8, 7\)"),
        (lambda: model.log_likelihood(images + 17), "found level"),
        (lambda: model.sample(0), "n: found 0"),
        (lambda: model.sample(1, output="median"), "output: 'median'"),
        (lambda: model.sample(1, prior="mixture"), "prior: 'mixture'"),
        (lambda: model.loss(images, draws(2, 3, 3), beta=2.0), "importance weighting takes 1 and 0"),
        (lambda: model.loss(images, draws(2, 1, 3), beta=-1.0), "must not be below 0"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_what_is_not_finite_is_no_result():
    """A draw of parameters that are no numbers would be a picture of levels like any other."""
    model, images = build().eval(), torch.zeros(2, *SHAPE, dtype=torch.uint8)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(math.nan)
    for output in ("mean", "draw"):
        with pytest.raises(UserError, match="not finite"):
            model.sample(2, output=output)
    few = {"iwae": {"samples": 2}, "elbo": {"samples": 2}, "ais": {"steps": 2, "chains": 2, "leapfrog": 1}}
    for method, options in few.items():
        with pytest.raises(UserError, match="the log-probability of sample 0 is nan"):
            model.log_likelihood(images, method, **options)
