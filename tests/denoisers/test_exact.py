"""Exact denoisers against torch.distributions, quadrature, brute force and each other."""

import math

import pytest
import torch
from laws import F64, SCHEDULES, f64, mixture, name, seeded, times
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffusion.denoisers.exact import Empirical, Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.schedules import EDM, VE, VP, Cosine, Rectified

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def _noisy(schedule, shape, n=6):
    t = times(schedule, n)
    alpha, sigma = (value.reshape(n, *(1,) * len(shape)) for value in schedule(t))
    return alpha * seeded(n, *shape) + sigma * seeded(n, *shape, seed=1), t


def _models(schedule):
    means, stds, weights = seeded(4, 2, 3), f64([0.2, 0.5, 1.0, 0.1]), f64([0.1, 0.4, 0.2, 0.3])
    return [
        Gaussian(seeded(2, 3), 0.2 + seeded(2, 3, seed=2).abs(), schedule),
        GaussianMixture(means, stds, schedule, weights),
        Empirical(seeded(9, 2, 3), schedule),
    ]


@every_schedule
def test_log_prob_at_is_the_density_of_the_noisy_law(schedule):
    x_t, t = _noisy(schedule, (2, 3))
    gaussian, mix, empirical = _models(schedule)
    for i, t_i in enumerate(t):
        alpha, sigma = schedule(t_i)
        std = torch.sqrt((alpha * gaussian.std) ** 2 + sigma**2)
        laws = {
            gaussian: Independent(Normal(alpha * gaussian.mean, std), 2),
            mix: _mixture_law(mix.weights, alpha * mix.means, torch.sqrt((alpha * mix.stds) ** 2 + sigma**2)),
            empirical: _mixture_law(torch.ones(9, dtype=F64), alpha * empirical.data, sigma.expand(9)),
        }
        for model, law in laws.items():
            expected = law.log_prob(x_t[i])
            torch.testing.assert_close(model.log_prob_at(x_t, t)[i], expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(model.log_prob_at(x_t[i : i + 1], t_i)[0], expected, rtol=1e-9, atol=1e-9)


def _mixture_law(weights, means, stds):
    parts = Independent(Normal(means, stds[:, None, None].expand_as(means)), 2)
    return MixtureSameFamily(Categorical(weights), parts)


def test_log_prob_is_the_density_of_the_data():
    gaussian, mix, empirical = _models(VP())
    x = seeded(5, 2, 3, seed=4)
    expected = Independent(Normal(gaussian.mean, gaussian.std), 2).log_prob(x)
    torch.testing.assert_close(gaussian.log_prob(x), expected)
    torch.testing.assert_close(mix.log_prob(x), _mixture_law(mix.weights, mix.means, mix.stds).log_prob(x))
    with pytest.raises(UserError, match="log_prob_at"):
        empirical.log_prob(x)


@every_schedule
def test_the_score_is_the_gradient_of_the_log_density(schedule):
    x_t, t = _noisy(schedule, (2, 3))
    for model in _models(schedule):
        x = x_t.clone().requires_grad_()
        gradient = torch.autograd.grad(model.log_prob_at(x, t).sum(), x)[0]
        torch.testing.assert_close(model.score(x_t, t), gradient, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Rectified()], ids=name)
def test_the_posterior_mean_by_quadrature(schedule):
    """E[x | x_t] = int x p(x) N(x_t; alpha x, sigma^2) dx / int p(x) N(x_t; alpha x, sigma^2) dx in one dimension."""
    mix = GaussianMixture(f64([[-1.0], [0.4], [2.0]]), f64([0.3, 0.1, 0.6]), schedule, f64([0.2, 0.5, 0.3]))
    gauss = Gaussian(f64([0.4]), f64([0.7]), schedule)
    x = torch.linspace(-6, 8, 200_001, dtype=F64)
    for log_snr in (-6.0, -2.0, 0.0, 3.0, 8.0):
        t = schedule.inverse_log_snr(f64(log_snr))
        alpha, sigma = schedule(t)
        for x_0 in (-1.3, 0.0, 1.7):
            x_t = alpha * x_0 + 0.8 * sigma
            for model in (mix, gauss):
                log_joint = model.log_prob(x[:, None]) - 0.5 * ((x_t - alpha * x) / sigma) ** 2
                weight = (log_joint - log_joint.max()).exp()
                expected = (weight * x).sum() / weight.sum()
                torch.testing.assert_close(model(x_t.reshape(1, 1), t)[0, 0], expected, rtol=1e-8, atol=1e-9)


@every_schedule
def test_a_gaussian_is_a_mixture_of_one_and_of_equals(schedule):
    x_t, t = _noisy(schedule, (2, 3))
    mean = seeded(2, 3, seed=3)
    one = Gaussian(mean, 0.6, schedule)
    for k in (1, 3):
        mix = GaussianMixture(mean.expand(k, 2, 3), torch.full((k,), 0.6, dtype=F64), schedule, torch.rand(k) + 0.1)
        torch.testing.assert_close(mix(x_t, t), one(x_t, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mix.log_prob_at(x_t, t), one.log_prob_at(x_t, t), rtol=1e-9, atol=1e-6)


@every_schedule
def test_empirical_by_brute_force(schedule):
    data = seeded(50, 3, 2, 2)
    model = Empirical(data, schedule)
    x_t, t = _noisy(schedule, (3, 2, 2), n=5)
    for i in range(5):
        alpha, sigma = (float(value) for value in schedule(t[i]))
        energies = [-float(((x_t[i] - alpha * x) ** 2).sum()) / (2 * sigma**2) for x in data]
        top = max(energies)
        weights = [math.exp(energy - top) for energy in energies]
        expected = sum(w * x for w, x in zip(weights, data, strict=True)) / sum(weights)
        torch.testing.assert_close(model(x_t, t)[i], expected, rtol=1e-9, atol=1e-9)


def test_empirical_is_the_limit_of_narrow_components():
    data = seeded(20, 4)
    x_t, t = _noisy(VP(), (4,))
    narrow = GaussianMixture(data, torch.full((20,), 1e-7, dtype=F64), VP())
    torch.testing.assert_close(Empirical(data, VP())(x_t, t), narrow(x_t, t), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        Empirical(data, VP()).log_prob_at(x_t, t), narrow.log_prob_at(x_t, t), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("schedule", [VP(), EDM(), VE()], ids=name)
def test_float32_on_images_at_both_ends(schedule):
    """3072 dimensions: squared distances are 1e3 to 1e7, their differences decide, and sigma goes down to 1e-3."""
    data = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = [
        Gaussian(data.mean(0), data.std(0), schedule),
        GaussianMixture(data, torch.linspace(0.05, 0.3, 40), schedule),
        Empirical(data, schedule),
    ]
    x = data[:6]
    for t in times(schedule, 5):
        alpha, sigma = (value.float() for value in schedule(t))
        x_t = alpha * x + sigma * seeded(6, 3, 32, 32).float()
        for model in models:
            x_hat = model(x_t, t.float())
            assert x_hat.dtype == torch.float32
            log_prob = model.log_prob_at(x_t, t.float()).double()
            model.double()
            truth = model(x_t.double(), t.float().double())
            torch.testing.assert_close(x_hat.double(), truth, rtol=2e-3, atol=2e-3)
            truth = model.log_prob_at(x_t.double(), t.float().double())
            torch.testing.assert_close(log_prob, truth, rtol=1e-3, atol=1.0)
            model.float()


def test_far_outside_the_data_nothing_overflows():
    for model in _models(EDM()):
        x_t, t = torch.full((2, 2, 3), 1e4), torch.tensor(1e-6)
        x_hat = model.float()(x_t, t)
        torch.testing.assert_close(x_hat.double(), model.double()(x_t.double(), t.double()), rtol=1e-4, atol=1e-3)


def test_blocks_of_the_data_do_not_change_the_answer(monkeypatch):
    x_t, t = _noisy(Cosine(), (2, 3))
    models = _models(Cosine())[1:]
    whole = [(model(x_t, t), model.log_prob_at(x_t, t)) for model in models]
    monkeypatch.setattr("diffusion.denoisers.exact._BLOCK", 2 * x_t.numel())
    for model, (x_hat, log_prob) in zip(models, whole, strict=True):
        torch.testing.assert_close(model(x_t, t), x_hat, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(model.log_prob_at(x_t, t), log_prob, rtol=1e-14, atol=1e-14)


def test_moments_and_law_of_draws():
    n = 20_000
    gaussian = Gaussian(f64([1.0, -2.0]), f64([0.5, 3.0]), VP())
    x = gaussian.draw(n, seed=3)
    assert ((x.mean(0) - gaussian.mean).abs() < 4 * gaussian.std / n**0.5).all()
    assert ((x.std(0) / gaussian.std - 1).abs() < 4 / (2 * n) ** 0.5).all()

    mix = mixture(VP())
    x = mix.draw(n, seed=3)
    mean = mix.weights @ mix.means
    variance = mix.weights @ (mix.means**2 + mix.stds[:, None] ** 2) - mean**2
    assert ((x.mean(0) - mean).abs() < 4 * variance.sqrt() / n**0.5).all()
    assert ((x.var(0) / variance - 1).abs() < 0.05).all()
    # E[score score^T] = -E[Hessian] would need more; the mean of log p over draws is minus the entropy, by quadrature
    side = torch.linspace(-4, 4, 401, dtype=F64)
    log_p = mix.log_prob(torch.cartesian_prod(side, side))
    entropy = -(log_p.exp() * log_p).sum() * (side[1] - side[0]) ** 2
    assert float(-mix.log_prob(x).mean()) == pytest.approx(float(entropy), abs=0.03)

    data = torch.arange(5, dtype=F64)[:, None]
    counts = Empirical(data, VP()).draw(n, seed=3)[:, 0].long().bincount(minlength=5)
    assert ((counts / n - 0.2).abs() < 4 * (0.16 / n) ** 0.5).all()


def test_a_component_without_weight_is_never_drawn():
    mix = GaussianMixture(f64([[0.0], [9.0], [1.0], [9.0]]), f64([0.1] * 4), VP(), f64([1.0, 0.0, 1.0, 0.0]))
    assert float(mix.draw(2000, seed=0).max()) < 3
    others = GaussianMixture(f64([[0.0], [1.0]]), f64([0.1] * 2), VP(), f64([1.0, 1.0]))
    x_t = f64([[9.0], [0.3]])
    torch.testing.assert_close(mix.score(x_t, f64(0.1)), others.score(x_t, f64(0.1)))


def test_a_draw_depends_on_seed_and_index_only():
    for model in _models(VP()):
        draws = model.draw(10, seed=5)
        assert draws.shape == (10, 2, 3)
        assert torch.equal(model.draw(4, seed=5), draws[:4])
        assert not torch.equal(model.draw(10, seed=6), draws)
        assert model.draw(0, seed=5).shape == (0, 2, 3)
        assert model.float().draw(3, seed=5).dtype == torch.float32


def test_parameters_are_buffers_and_the_answer_has_the_dtype_of_the_state():
    for model in _models(VP()):
        assert not list(model.parameters())
        assert set(model.state_dict()) in ({"mean", "std"}, {"means", "stds", "weights"}, {"data"})
        for dtype in (torch.float32, F64):
            x_t = seeded(3, 2, 3).to(dtype)
            for t in (torch.tensor(0.5), f64([0.2, 0.5, 0.8])):
                assert model(x_t, t).dtype == dtype
                assert model.log_prob_at(x_t, t).dtype == dtype
                assert model.log_prob_at(x_t, t).shape == (3,)
        assert model.float()(seeded(3, 2, 3), f64(0.5)).dtype == F64


def test_shapes_of_a_gaussian_broadcast():
    assert Gaussian(0.0, torch.ones(3, 1, 1), VP()).shape == (3, 1, 1)
    assert Gaussian(torch.zeros(3, 4, 4), 0.5, VP()).shape == (3, 4, 4)
    per_channel = Gaussian(torch.zeros(3, 4, 4), torch.tensor([1.0, 2.0, 3.0])[:, None, None], VP())
    assert per_channel.std[:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    scalar = Gaussian(1.0, 2.0, VP())
    assert scalar.shape == ()
    torch.testing.assert_close(scalar.log_prob(f64([0.0, 3.0])), Normal(f64(1.0), f64(2.0)).log_prob(f64([0.0, 3.0])))
    assert scalar(f64([0.0, 3.0]), f64(0.5)).shape == (2,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(torch.zeros(3), torch.ones(2), VP()), "broadcast"),
        (lambda: Gaussian(torch.zeros(3), 0.0, VP()), "std: found 0.0; must be positive"),
        (lambda: Gaussian(torch.tensor([0.0, float("nan")]), 1.0, VP()), "mean: has values that are not finite"),
        (lambda: GaussianMixture(torch.zeros(3, 2), torch.ones(2), VP()), r"stds: found shape \(2,\)"),
        (lambda: GaussianMixture(torch.zeros(3, 2), torch.ones(3), VP(), torch.ones(4)), "weights: found shape"),
        (lambda: GaussianMixture(torch.zeros(2, 2), torch.ones(2), VP(), torch.tensor([1.5, -0.5])), "weights"),
        (lambda: GaussianMixture(torch.zeros(2, 2), torch.ones(2), VP(), torch.zeros(2)), "weights"),
        (lambda: GaussianMixture(torch.zeros(2, 2), torch.tensor([1.0, -1.0]), VP()), "stds"),
        (lambda: Empirical(torch.zeros(0, 2), VP()), "data"),
        (lambda: Empirical(torch.full((2, 2), torch.inf), VP()), "data"),
        (lambda: Empirical(torch.zeros(2, 2), VP())(torch.zeros(1, 2), torch.tensor(0.5), torch.zeros(1)), "label"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
