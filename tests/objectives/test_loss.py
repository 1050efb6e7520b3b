"""The loss is an unbiased estimate of one integral, whatever the times are drawn from and the network predicts.

For Gaussian data and the exact denoiser of another Gaussian the error is affine in (x, eps), so that its square is
averaged exactly by x = m +- c, eps = +-1; and the integral over u is a sum with a double-exponential map.
"""

import math
from types import SimpleNamespace

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffusion.config import PREDICTIONS, WEIGHTINGS, ObjectiveConfig
from diffusion.denoisers import NetworkDenoiser, exact
from diffusion.errors import UserError
from diffusion.objectives import Losses, Objective, time_distribution, weighting
from diffusion.schedules.schedule import log_snr_ends

FOUR = pytest.mark.parametrize("schedule", laws.FOUR_SCHEDULES, ids=laws.name)
WRONG_MEAN, WRONG_STD = -0.2, 0.6


def expected_loss(objective, denoiser, mean, std) -> float:
    """The expectation of the loss over data N(mean, std^2), noise and times, by quadrature."""
    y = torch.linspace(-32, 32, 4001, dtype=torch.float64)
    u, jacobian = torch.sigmoid(y), torch.sigmoid(y) * torch.sigmoid(-y) * (y[1] - y[0])
    total = 0.0
    for z in (-1.0, 1.0):
        for e in (-1.0, 1.0):
            x = torch.full((len(u), 1), mean + std * z, dtype=torch.float64)
            losses = objective(denoiser, x, u.clamp(1e-15, 1 - 1e-15), torch.full_like(x, e))
            total += 0.25 * float((losses.weighted * jacobian).sum())
    return total


def integral(weight, schedule, mean, std) -> float:
    """The integral of w(lambda) E||eps - eps_hat||^2 in closed form but for the integration over lambda."""
    low, high = log_snr_ends(schedule)
    count = 40_000
    log_snr = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    s2 = torch.exp(-log_snr)  # in the variables x_t / alpha, s = sigma / alpha
    gain = WRONG_STD**2 / (WRONG_STD**2 + s2)
    bias = (1 - gain) * (WRONG_MEAN - mean)
    error = bias**2 + ((gain - 1) * std) ** 2 + gain**2 * s2
    return float((weight(log_snr) * error / s2).mean()) * (high - low)


@FOUR
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_expected_loss_does_not_depend_on_the_times(name, schedule):
    denoiser = exact.Gaussian(laws.f64([WRONG_MEAN]), laws.f64([WRONG_STD]), schedule)
    weight = weighting(name, schedule)
    expected = integral(weight, schedule, laws.MEAN, laws.STD)
    for times in ObjectiveConfig.words("time"):
        found = expected_loss(Objective(weight, time_distribution(times)), denoiser, laws.MEAN, laws.STD)
        assert found == pytest.approx(expected, rel=2e-3), times


@FOUR
def test_the_elbo_weighted_loss_of_the_true_denoiser_is_its_closed_form(schedule):
    """E||eps - eps_hat||^2 = sigmoid(lambda + 2 log c): its mean over lambda is a difference of softplus."""
    objective = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
    low, high = (laws.f64(end + 2 * math.log(laws.STD)) for end in log_snr_ends(schedule))
    expected = float((softplus(high) - softplus(low)) / (high - low))
    assert expected_loss(objective, laws.gaussian(schedule), laws.MEAN, laws.STD) == pytest.approx(expected, rel=1e-5)


@FOUR
def test_simple_at_uniform_times_is_the_mean_squared_error_of_the_noise(schedule):
    objective = Objective(weighting("simple", schedule), time_distribution("uniform"))
    x, eps = laws.MEAN + laws.STD * laws.seeded(200, 3), laws.seeded(200, 3, seed=1)
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    denoiser = exact.Gaussian(laws.f64([0.0, 0.1, 0.2]), laws.f64([1.0, 0.5, 0.3]), schedule)
    losses = objective(denoiser, x, u, eps)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * u
    alpha, sigma = schedule(t[:, None])
    x_t = alpha * x + sigma * eps
    error = (denoiser.eps(x_t, t) - eps).square().mean(1)
    assert torch.allclose(losses.eps_error, error, rtol=1e-5)
    assert torch.allclose(losses.weighted, error, rtol=1e-3)
    assert torch.allclose(losses.log_snr, schedule.log_snr(t))


class Oracle(NetworkDenoiser):
    """A network denoiser whose network puts out what makes it an exact denoiser, in its own parameterisation."""

    def __init__(self, schedule, prediction, truth):
        super().__init__(nn.Identity(), schedule, prediction, (2,), sigma_data=0.7)
        self.truth = truth

    def raw(self, x_t: Tensor, t: Tensor, cond, at) -> Tensor:
        return self.x_to_raw(self.truth(x_t, t), x_t, at)


@pytest.mark.parametrize("schedule", laws.SCHEDULES, ids=laws.name)
def test_the_loss_is_the_same_for_every_prediction_of_one_oracle(schedule):
    objective = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
    truth = exact.Gaussian(laws.f64([0.3, -0.4]), laws.f64([0.5, 0.9]), schedule)
    x, eps = laws.seeded(64, 2), laws.seeded(64, 2, seed=1)
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    expected = objective(truth, x, u, eps).weighted
    for prediction in PREDICTIONS:
        found = objective(Oracle(schedule, prediction, truth), x, u, eps).weighted
        assert torch.allclose(found, expected, rtol=1e-6), prediction


def test_the_losses_are_per_sample_means_over_dimensions_in_the_dtype_of_the_data():
    schedule = laws.SCHEDULES[0]
    objective = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
    denoiser, wide = (exact.Gaussian(torch.zeros(1, 2, width), 1.0, schedule) for width in (2, 4))
    x, eps, u = torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2), torch.rand(6, dtype=torch.float64)
    losses = objective(denoiser, x, u, eps)
    assert losses.weighted.shape == losses.eps_error.shape == losses.log_snr.shape == (6,)
    assert losses.weighted.dtype == torch.float32
    doubled = objective(wide, torch.cat((x, x), -1), u, torch.cat((eps, eps), -1))
    assert torch.allclose(doubled.eps_error, losses.eps_error), "a mean over dimensions, not a sum"
    alone = objective(denoiser, x[3:4], u[3:4], eps[3:4])
    assert torch.allclose(alone.weighted, losses.weighted[3:4])


def test_only_the_weighted_loss_carries_a_gradient():
    schedule = laws.SCHEDULES[0]
    network = nn.Linear(2, 2)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = network

        def forward(self, x, c_noise, labels):
            return self.linear(x)

    objective = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
    denoiser = NetworkDenoiser(Wrapped(), schedule, "v", (2,))
    losses: Losses = objective(denoiser, torch.randn(4, 2), torch.rand(4, dtype=torch.float64), torch.randn(4, 2))
    assert not losses.eps_error.requires_grad
    losses.weighted.mean().backward()
    assert float(network.weight.grad.abs().sum()) > 0


def _one(**options):
    schedule = laws.SCHEDULES[0]
    objective = Objective(weighting("elbo", schedule), time_distribution("uniform"))
    denoiser = exact.Gaussian(laws.f64([WRONG_MEAN]), laws.f64(WRONG_STD), schedule)
    return objective(denoiser, laws.seeded(64, 1).float(), **options)


def test_draws_of_its_own_are_torch_s_and_those_that_are_given_are_taken():
    torch.manual_seed(5)
    first = _one()
    assert not torch.equal(_one().log_snr, first.log_snr)
    torch.manual_seed(5)
    assert torch.equal(_one().weighted, first.weighted)
    seeded = _one(generator=torch.Generator().manual_seed(5))
    assert torch.equal(seeded.weighted, first.weighted)
    generator = torch.Generator().manual_seed(5)
    u = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(64) / 64) % 1.0
    eps = torch.randn(64, 1, generator=generator)
    assert torch.equal(_one(u=u, eps=eps).weighted, first.weighted)
    mixed = _one(u=u)
    assert torch.equal(mixed.log_snr, first.log_snr)
    assert not torch.equal(mixed.eps_error, first.eps_error)


def test_the_mean_over_draws_of_its_own_is_the_expected_loss():
    schedule = laws.SCHEDULES[0]
    objective = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
    denoiser = exact.Gaussian(laws.f64([WRONG_MEAN]), laws.f64(WRONG_STD), schedule)
    generator = torch.Generator().manual_seed(0)
    x = laws.MEAN + laws.STD * torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    losses = objective(denoiser, x, generator=generator)
    expected = expected_loss(objective, denoiser, laws.MEAN, laws.STD)
    error = float(losses.weighted.std()) / len(x) ** 0.5  # of independent times: stratified ones do not do worse
    assert abs(float(losses.mean()) - expected) < 4 * error < 0.02 * expected


def test_data_that_are_no_floats_and_draws_of_another_shape_are_refused():
    schedule = laws.SCHEDULES[0]
    objective = Objective(weighting("elbo", schedule), time_distribution("uniform"))
    denoiser = exact.Gaussian(laws.f64([0.0]), laws.f64(1.0), schedule)
    with pytest.raises(UserError, match=r"x: found torch\.uint8; needs real numbers"):
        objective(denoiser, torch.zeros(4, 1, dtype=torch.uint8))
    with pytest.raises(UserError, match="x, u, eps: found shapes"):
        objective(denoiser, torch.zeros(4, 1), eps=torch.zeros(3, 1))


def test_arrays_lists_and_trained_models_are_taken_and_names_refused():
    schedule = laws.SCHEDULES[0]
    objective = Objective(weighting("elbo", schedule), time_distribution("uniform"))
    denoiser = exact.Gaussian(laws.f64([0.0]), laws.f64(1.0), schedule)
    u, eps = [0.1, 0.2, 0.3, 0.4], [[1.0]] * 4
    tensors = objective(denoiser, torch.ones(4, 1), torch.tensor(u).double(), torch.ones(4, 1))
    lists = objective(SimpleNamespace(denoiser=denoiser), [[1.0]] * 4, torch.tensor(u).double().numpy(), eps)
    assert torch.equal(lists.weighted, tensors.weighted)
    assert torch.allclose(objective(denoiser, torch.ones(4, 1), u, eps).weighted, tensors.weighted)
    with pytest.raises(UserError, match="denoiser: found a Linear"):
        objective(nn.Linear(1, 1), torch.ones(4, 1))
    with pytest.raises(UserError, match="x: found one number"):
        objective(denoiser, 1.0)
    with pytest.raises(UserError, match="weighting: found 'elbo'"):
        Objective("elbo", time_distribution("uniform"))
    with pytest.raises(UserError, match="times: found 'uniform'"):
        Objective(weighting("elbo", schedule), "uniform")
