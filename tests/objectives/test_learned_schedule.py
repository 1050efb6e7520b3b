"""A learned schedule is trained for the least variance of the loss, and the network as if the schedule were fixed.

For the exact denoiser of another Gaussian the loss is a square of what is affine in (x, eps), and its second moment is
averaged exactly by three points of Gauss and Hermite in each; the integral over u is a sum.
"""

import copy
import math

import laws
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from diffusion.denoisers import NetworkDenoiser, exact
from diffusion.networks import MLP
from diffusion.objectives import Objective, draw_u, time_distribution, weighting
from diffusion.objectives.loss import SCHEDULE_SCALE
from diffusion.schedules import Learned

NODES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))


def objective_on(schedule) -> Objective:
    return Objective(weighting("elbo", schedule), time_distribution("uniform"))


def moments(denoiser, count=20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """E[loss] and E[loss^2] over data, noise and times, and the mean of what is to be added for the schedule."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    objective = objective_on(denoiser.schedule)
    first, second, third = laws.f64(0.0), laws.f64(0.0), laws.f64(0.0)
    for z, weight_z in NODES:
        for e, weight_e in NODES:
            x = torch.full((count, 1), laws.MEAN + laws.STD * z, dtype=torch.float64)
            losses = objective(denoiser, x, u, torch.full_like(x, e))
            first = first + weight_z * weight_e * losses.weighted.mean()
            second = second + weight_z * weight_e * losses.weighted.square().mean()
            third = third + weight_z * weight_e * losses.schedule.mean()
    return first, second, third


def test_the_schedules_gradient_is_that_of_the_second_moment_and_the_mean_has_none():
    """Against differences of the second moment at fixed u, where x_t and the noise level move with the schedule."""
    schedule = Learned(6.0, -4.0, segments=4).double()
    with torch.no_grad():
        schedule.log_density.copy_(0.05 * laws.seeded(5))
    denoiser = exact.Gaussian(laws.f64([-0.2]), laws.f64([0.6]), schedule)
    first, _, for_schedule = moments(denoiser)
    assert float(for_schedule.detach()) == 0.0
    (found,) = torch.autograd.grad(for_schedule, schedule.log_density)
    expected = torch.zeros_like(found)
    step = 1e-3  # the losses have kinks in time, which move: a shorter step feels the 20,000 points
    for i in range(5):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                schedule.log_density[i] += sign * step
                mean, square, _ = moments(denoiser)
                schedule.log_density[i] -= sign * step
            assert float(mean) == pytest.approx(float(first), rel=1e-7), "the bound does not depend on the interior"
            ends.append(float(square))
        expected[i] = (ends[0] - ends[1]) / (2 * step)
    assert float(expected.abs().min()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)


class Noisy(nn.Module):
    """A network in float64 that hears the noise level."""

    def __init__(self):
        super().__init__()
        self.inner = MLP(2, width=8, depth=1).double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.3)

    def forward(self, x, c_noise, labels=None):
        return self.inner(x, c_noise, labels)


@pytest.mark.parametrize("prediction", ["v", "eps", "velocity", "edm"])
def test_the_networks_gradient_is_that_with_a_fixed_schedule(prediction):
    torch.manual_seed(0)
    schedule = laws.learned().requires_grad_(True)
    denoiser = NetworkDenoiser(Noisy(), copy.deepcopy(schedule), prediction, (2,))
    frozen = copy.deepcopy(denoiser)
    frozen.schedule.requires_grad_(False)
    arguments = (laws.seeded(16, 2), torch.rand(16, dtype=torch.float64), laws.seeded(16, 2, seed=1))
    losses = objective_on(schedule)(denoiser, *arguments)
    losses.weighted.mean().backward(retain_graph=True)
    assert denoiser.schedule.log_density.grad is None, "neither x_t nor the noise level leads to the schedule"
    losses.schedule.mean().backward()
    assert float(denoiser.schedule.log_density.grad.abs().sum()) > 0
    fixed = objective_on(schedule)(frozen, *arguments)
    assert torch.equal(fixed.weighted, losses.weighted)
    assert not fixed.schedule.requires_grad
    fixed.weighted.mean().backward()
    for ours, theirs in zip(denoiser.network.parameters(), frozen.network.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    alone = denoiser.schedule.log_density.grad.clone()
    denoiser.zero_grad()
    objective_on(schedule)(denoiser, *arguments).mean().backward()  # both at once, the schedule's scaled
    torch.testing.assert_close(denoiser.schedule.log_density.grad, SCHEDULE_SCALE * alone)
    for ours, theirs in zip(denoiser.network.parameters(), frozen.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_training_the_schedule_alone_brings_the_variance_to_its_least_and_the_loss_to_one_level():
    """The error of the true denoiser is z^2 sigmoid(lambda + 2 log c): the best density is in proportion to it."""
    low, high = 0.0, 8.0
    schedule = Learned(high, low, segments=8)
    denoiser = laws.gaussian(schedule)
    objective = objective_on(schedule)

    def flatness() -> float:
        """The spread of the expected loss over uniform times, as a share of its mean."""
        log_snr = schedule.log_snr(torch.linspace(schedule.t_min, 1.0, 1001, dtype=torch.float64))
        loss = torch.sigmoid(log_snr + 2 * math.log(laws.STD)) / schedule.time_density(log_snr).detach()
        return float(loss.std() / loss.mean())

    with torch.no_grad():
        mean_before, before, _ = moments(denoiser, 2000)
    spread_before = flatness()
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.02)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
    positions = torch.arange(512)
    for step in range(300):
        u = draw_u(0, step, positions, 512, stratified=True)
        x, eps = laws.MEAN + laws.STD * laws.seeded(512, 1, seed=2 * step), laws.seeded(512, 1, seed=2 * step + 1)
        optimizer.zero_grad()
        objective(denoiser, x, u, eps).schedule.mean().backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        mean, after, _ = moments(denoiser, 2000)
    area = softplus(laws.f64(high + 2 * math.log(laws.STD))) - softplus(laws.f64(low + 2 * math.log(laws.STD)))
    least = 3 * float(area / (high - low)) ** 2  # E z^4 = 3
    assert float(mean) == pytest.approx(float(mean_before), rel=1e-5)
    assert float(after) < 1.01 * least < 0.95 * float(before)
    assert flatness() < 0.1 < 0.25 < spread_before
