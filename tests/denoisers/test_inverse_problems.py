"""Denoisers given an observation, against E[x | x_t, y] in closed form on Gaussians and mixtures of Gaussians."""

from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from exact_posteriors import dense, mixture_posterior, mixture_posterior_mean
from laws import F64, FOUR_SCHEDULES, f64, name, seeded, times
from torch import nn

from diffusion.denoisers import Clipped, NetworkDenoiser, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.inverse_problems import (
    DPS,
    METHODS,
    Blur,
    Downsample,
    Mask,
    MomentMatching,
    Observation,
    PseudoInverse,
)
from diffusion.denoisers.inverse_problems.moment_matching import least_residual
from diffusion.errors import UserError
from diffusion.sampling.sample import sample
from diffusion.schedules import VP, Cosine

SHAPE = (1, 4, 4)
KEPT = torch.zeros(SHAPE, dtype=torch.bool)
KEPT[:, :2] = True
OPERATORS = [Mask(KEPT), Downsample(2), Blur(0.5)]
every_schedule = pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)


def observe(operator, x, noise_std, seed=3):
    seen = operator(x)
    return Observation(operator, seen + noise_std * seeded(*seen.shape, seed=seed), noise_std)


def noisy(schedule, n, low=-6.0, high=6.0):
    t = times(schedule, n, low, high)
    alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in schedule(t))
    return alpha * 0.5 * seeded(n, *SHAPE, seed=4) + sigma * seeded(n, *SHAPE, seed=5), t


def gaussian_posterior_mean(model, x_t, t, observation):
    """E[x | x_t, y] of N(mean, diag std^2): precisions add."""
    a = dense(observation.operator, model.shape)
    rows = []
    for row, alpha, sigma in zip(x_t, *model.schedule(t), strict=True):
        precision = torch.diag(model.std.flatten() ** -2) + (alpha / sigma) ** 2 * torch.eye(row.numel(), dtype=F64)
        precision = precision + a.T @ a / observation.noise_std**2
        pull = (model.mean / model.std**2).flatten() + alpha / sigma**2 * row.flatten()
        pull = pull + a.T @ observation.y.flatten() / observation.noise_std**2
        rows.append(torch.linalg.solve(precision, pull).reshape(row.shape))
    return torch.stack(rows)


@every_schedule
@every_operator
def test_moment_matching_is_exact_on_gaussians(schedule, operator):
    model = exact.Gaussian(seeded(*SHAPE), 0.3 + 0.5 * seeded(*SHAPE, seed=1).abs(), schedule)
    observation = observe(operator, model.draw(1), 0.2)
    x_t, t = noisy(schedule, 6)
    given = MomentMatching(model, observation, iterations=40, tolerance=1e-12)
    expected = gaussian_posterior_mean(model, x_t, t, observation)
    torch.testing.assert_close(given(x_t, t), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(given(x_t[:1], t[0]), expected[:1], rtol=1e-6, atol=1e-6)


@every_schedule
@every_operator
def test_the_pseudo_inverse_is_exact_where_its_variance_is(schedule, operator):
    model = exact.Gaussian(seeded(*SHAPE), 0.6, schedule)
    observation = observe(operator, model.draw(1), 0.1)
    x_t, t = noisy(schedule, 6)
    expected = gaussian_posterior_mean(model, x_t, t, observation)
    given = PseudoInverse(model, observation, data_std=0.6)
    torch.testing.assert_close(given(x_t, t), expected, rtol=1e-6, atol=1e-6)
    other = PseudoInverse(model, observation, data_std=1.0)(x_t, t)
    assert float((other - expected).abs().max()) > 0.05


def test_dps_is_the_gradient_of_its_likelihood_and_biased():
    """x_hat - (sigma^2 / alpha) grad ||y - A x_hat||^2 / (2 r^2), by finite differences; biased on N(0, 1)."""
    schedule = VP()
    model = exact.Gaussian(torch.zeros(SHAPE, dtype=F64), 1.0, schedule)
    observation = observe(OPERATORS[0], model.draw(1), 0.1)
    x_t, t = noisy(schedule, 5, -2.0, 2.0)
    alpha, sigma = schedule(t)
    square = observation.residual(model(x_t, t)).square().mean(1)
    assert float(square.min()) > 0.1**2
    step, direction = 1e-6, seeded(*x_t.shape, seed=8)
    up, down = (observation.residual(model(x_t + s * direction, t)).square().sum(1) for s in (step, -step))
    slope = -(up - down) / (2 * step) / (2 * square) * sigma**2 / alpha
    change = DPS(model, observation)(x_t, t) - model(x_t, t)
    torch.testing.assert_close((change * direction).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(DPS(model, observation, 0.5)(x_t, t) - model(x_t, t), 0.5 * change)
    off = (change + model(x_t, t) - gaussian_posterior_mean(model, x_t, t, observation)).abs().max()
    assert float(off) > 0.1


@pytest.mark.parametrize("sign", ["positive", "indefinite", "not symmetric"])
def test_the_linear_solver_ends_at_the_solution_and_never_makes_the_residual_larger(sign):
    root = seeded(3, 6, 6)
    matrices = root + 4.0 * torch.eye(6, dtype=F64) if sign == "not symmetric" else root + root.mT
    if sign == "positive":
        matrices = root @ root.mT
    b = seeded(3, 6, seed=1)
    b[1] = 0.0

    def matrix(v):
        return (matrices @ v[..., None])[..., 0]

    lengths = [torch.linalg.norm(b - matrix(least_residual(matrix, b, k)), dim=1) for k in range(7)]
    for longer, shorter in pairwise(lengths):
        assert bool((shorter <= longer * (1 + 1e-12)).all())
    solved = least_residual(matrix, b, 6)
    torch.testing.assert_close(solved, torch.linalg.solve(matrices, b), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(least_residual(matrix, b, 20, tolerance=1e-9), solved, rtol=1e-6, atol=1e-8)
    assert bool((solved[1] == 0).all())


# A mixture where the observation leaves several of the modes possible.
MIXTURE = exact.GaussianMixture(0.6 * seeded(5, *SHAPE), f64([0.3, 0.2, 0.25, 0.3, 0.2]), Cosine())


@lru_cache
def mixture_problem(operator):
    """The observation, exact draws of the posterior, and what it is."""
    observation = observe(operator, MIXTURE.draw(1, seed=3), 0.1)
    a = dense(operator, SHAPE)
    posterior = mixture_posterior(MIXTURE.means, MIXTURE.stds, MIXTURE.weights, a, observation.y.flatten(), 0.1)
    shares, centres, covariances = posterior
    k = torch.multinomial(shares, 20, True, generator=torch.Generator().manual_seed(0))
    x = centres[k] + (torch.linalg.cholesky(covariances)[k] @ seeded(20, 16, 1, seed=7))[..., 0]
    return observation, x.reshape(-1, *SHAPE), a, posterior


@lru_cache
def error_on_the_mixture(method, operator):
    """RMS over three log-SNRs of x_hat - E[x | x_t, y], for x_t ~ p(x_t | y); `None` is the denoiser without y."""
    observation, x, a, _ = mixture_problem(operator)
    denoiser = MIXTURE if method is None else method(MIXTURE, observation)
    squares = []
    for log_snr in (-4.0, 0.0, 2.0):
        t = MIXTURE.schedule.inverse_log_snr(f64(log_snr))
        alpha, sigma = MIXTURE.schedule(t)
        x_t = alpha * x + sigma * seeded(*x.shape, seed=8)
        expected = mixture_posterior_mean(MIXTURE, x_t, alpha, sigma, a, observation.y.flatten(), 0.1)
        squares.append((denoiser(x_t, t) - expected).square().mean())
    return float(torch.stack(squares).mean().sqrt())


@every_operator
def test_on_a_mixture_moment_matching_is_nearest_to_the_exact_posterior_mean(operator):
    free, moments, pseudo, dps = (
        error_on_the_mixture(method, operator) for method in (None, MomentMatching, PseudoInverse, DPS)
    )
    assert moments < 0.5 * free
    assert moments < pseudo < dps


@pytest.mark.parametrize(("method", "off", "misfit"), [(MomentMatching, 0.5, 1.3), (PseudoInverse, 1.2, 2.0)])
def test_samples_of_a_mixture_given_an_observation(method, off, misfit):
    """The mean in units of the posterior's deviation, and A x - y in units of its noise; a wrong sign fails by far."""
    observation, _, a, (shares, centres, covariances) = mixture_problem(OPERATORS[1])
    x = sample(method(MIXTURE, observation), 400, "ancestral", steps=40, dtype=F64).flatten(1)
    mean = shares @ centres
    spread = centres - mean
    total = torch.einsum("k,kij->ij", shares, covariances + spread[:, :, None] * spread[:, None])
    assert float((x.mean(0) - mean).norm() / total.trace().sqrt()) < off
    assert float((x @ a.T - observation.y.flatten()).square().mean().sqrt()) < misfit * observation.noise_std


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.__name__)
def test_all_methods_run_with_any_sampler_and_without_noise_in_y(method, noise_std):
    model = exact.Gaussian(torch.zeros(SHAPE), 0.5, VP())
    observation = Observation(OPERATORS[1], torch.full((1, 1, 2, 2), 0.4), noise_std)
    for sampler in ("ddim", "sde"):
        x = sample(method(model, observation), 3, sampler, steps=30)
        assert bool(torch.isfinite(x).all())
        if noise_std == 0.0 and method is not DPS:
            assert float(observation.residual(x).abs().max()) < 0.02


def test_one_evaluation_an_answer_whatever_the_iterations():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3))

        def forward(self, x, c_noise, labels):
            return torch.tanh(self.weight * x)

    model = NetworkDenoiser(Net(), VP(), "v", SHAPE)
    observation = Observation(OPERATORS[0], torch.zeros(1, 8), 0.1)
    with count_evaluations(model) as count, torch.no_grad():
        x_hat = MomentMatching(Clipped(model), observation)(torch.ones(5, *SHAPE), torch.tensor(0.4))
    assert count.rows == 5
    assert not x_hat.requires_grad
    assert x_hat.dtype == torch.float32


def test_each_sample_may_have_its_own_observation():
    model = exact.Gaussian(seeded(*SHAPE), 0.6, VP())
    observation = observe(OPERATORS[1], model.draw(3), 0.1)
    x_t, t = noisy(VP(), 3)
    together = MomentMatching(model, observation)(x_t, t)
    for i in range(3):
        one = Observation(OPERATORS[1], observation.y[i : i + 1], 0.1)
        alone = MomentMatching(model, one)(x_t[i : i + 1], t[i])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_what_does_not_fit_is_refused():
    model = exact.Gaussian(torch.zeros(SHAPE), 1.0, VP())
    with pytest.raises(UserError, match=r"y: found shape \(1, 1, 3, 3\); these data are observed as \(2, 1, 2, 2\)"):
        MomentMatching(model, Observation(Downsample(2), torch.zeros(1, 1, 3, 3)))(torch.zeros(2, *SHAPE), f64(0.5))
    with pytest.raises(UserError, match="noise_std: found -1"):
        Observation(Downsample(2), torch.zeros(1, 1, 2, 2), -1.0)
    with pytest.raises(UserError, match="not finite"):
        Observation(Downsample(2), torch.full((1, 1, 2, 2), torch.nan))
    observation = Observation(Downsample(2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="iterations: found 0"):
        MomentMatching(model, observation, 0)
    with pytest.raises(UserError, match="data_std: found 0"):
        PseudoInverse(model, observation, 0.0)


def _deviations_off(operator, noise_std, std, **options):
    """RMS of x_hat - E[x | x_t, y] in deviations of x given x_t and y, at the worst of five noise levels."""
    model = exact.Gaussian(seeded(*std.shape), std, Cosine())
    observation, a, worst = observe(operator, model.draw(1), noise_std), dense(operator, std.shape), 0.0
    for log_snr in (-8.0, -4.0, 0.0, 4.0, 8.0):
        t = model.schedule.inverse_log_snr(f64(log_snr))
        alpha, sigma = model.schedule(t)
        x_t = alpha * model.draw(8, seed=2) + sigma * seeded(8, *std.shape, seed=3)
        expected = gaussian_posterior_mean(model, x_t, t.expand(8), observation)
        precision = torch.diag(std.flatten() ** -2 + (alpha / sigma) ** 2) + a.T @ a / noise_std**2
        deviation = torch.linalg.inv(precision).diagonal().sqrt().reshape(std.shape)
        off = (MomentMatching(model, observation, **options)(x_t, t) - expected) / deviation
        worst = max(worst, float(off.square().mean().sqrt()))
    return worst


@pytest.mark.parametrize("noise_std", [0.2, 0.05, 0.01])
@pytest.mark.parametrize("kind", ["mask", "means", "slight blur", "strong blur"])
def test_moment_matching_is_exact_on_gaussians_as_it_comes(kind, noise_std):
    """With no option set, to 0.02 deviations; with the 5 iterations of earlier versions it is far off."""
    kept = torch.zeros(1, 8, 8, dtype=torch.bool)
    kept[:, :4] = True
    operator = {"mask": Mask(kept), "means": Downsample(2), "slight blur": Blur(0.5), "strong blur": Blur(1.5)}[kind]
    std = 0.3 + 0.5 * seeded(1, 8, 8, seed=1).abs()
    assert _deviations_off(operator, noise_std, std) < 0.02
    if kind == "mask":
        assert _deviations_off(operator, noise_std, std, iterations=5) > 0.1


def test_iterations_end_where_the_matrix_is_no_covariance():
    """Of the eigenvalues 2 and -1e-3 the second would make the answer a thousand times as large."""
    values = f64([[2.0, -1e-3], [2.0, 1.0]])
    b = f64([[1.0, 1.0], [1.0, 1.0]])
    u = least_residual(lambda v: values * v, b, 10, least=1e-4)
    assert float(u[0].abs().max()) < 2
    torch.testing.assert_close(u[1], f64([0.5, 1.0]))
    assert float(least_residual(lambda v: values * v, b, 10)[0].abs().max()) > 500
