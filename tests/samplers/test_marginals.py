"""What docs/theory.md and docs/notation.md say of the law of a step: what it keeps, what it loses, what bounds it."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from laws import F64, FOUR_SCHEDULES, MEAN, STD, f64, gaussian, gaussian_law, name, times

from diffusion.denoisers import exact
from diffusion.samplers import DDIM, Ancestral, ExponentialSDE, Heun, LinearSampler, estimate_moments
from diffusion.samplers.affine_law import affine_law
from diffusion.samplers.sampler import Coefficients
from diffusion.schedules import VP, Cosine, Rectified, time_grid
from diffusion.schedules.forward_process import posterior, variance_for_unit_data

every_schedule = pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_of_ddim_loses_the_variance_of_the_denoisers_error(schedule, eta):
    t, s = times(schedule, 4, -5.0, 5.0)[1:3]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    mean, variance = gaussian_law(schedule, t)
    law = affine_law(DDIM(eta), gaussian(schedule), torch.stack((t, s))).push(mean, variance)
    error = 1 / (1 / STD**2 + (alpha_t / sigma_t) ** 2)
    fresh = eta**2 * posterior(schedule, t, s).variance
    lost = (alpha_s - alpha_t * torch.sqrt(sigma_s**2 - fresh) / sigma_t) ** 2 * error
    right_mean, right = gaussian_law(schedule, s)
    torch.testing.assert_close(law[0].squeeze(), right_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(law[1].squeeze(), right - lost, rtol=1e-9, atol=1e-12)
    assert lost > 1e-3 * right


@dataclass(frozen=True)
class _AllFresh(LinearSampler):
    """c = sigma_s: all of the noise is drawn anew."""

    @property
    def is_stochastic(self):
        return True

    def coefficients(self, schedule, t, s):
        alpha_s, sigma_s = schedule(s)
        return Coefficients(torch.zeros_like(alpha_s), alpha_s, sigma_s)


@pytest.mark.parametrize(("sampler", "share"), [(_AllFresh(), 0.5), (DDIM(1.0), 1.0), (DDIM(0.3), 1.0)], ids=str)
def test_short_steps_have_the_right_law_only_where_the_fresh_noise_falls_with_them(sampler, share):
    schedule = Cosine()
    grid = times(schedule, 1000, -12.0, 12.0)
    mean, variance = affine_law(sampler, gaussian(schedule), grid).push(*gaussian_law(schedule, grid[0]))
    assert float(mean) == pytest.approx(MEAN, rel=0.01)
    assert float(variance) == pytest.approx(share * STD**2, rel=0.03)


def _two_modes():
    """Modes at -1 and 1 in one dimension, of variance 1 in all; and E[x | x_t], Var[x | x_t], density on a line."""
    width = 0.1
    model = exact.GaussianMixture(f64([[-1.0], [1.0]]) * (1 - width**2) ** 0.5, f64([width, width]), VP())

    def at(t):
        x_t = torch.linspace(-6, 6, 4001, dtype=F64)[:, None].requires_grad_()
        alpha, sigma = model.schedule(t)
        x_hat = model(x_t, t)
        variance = sigma**2 / alpha * torch.autograd.grad(x_hat.sum(), x_t)[0]
        score = (alpha * x_hat.detach() - x_t.detach()) / sigma**2
        log_p = torch.cumulative_trapezoid(score[:, 0], x_t.detach()[:, 0])
        density = torch.cat((log_p.new_zeros(1), log_p)).softmax(0)
        return variance[:, 0], density

    return model, at


def test_the_variance_of_a_step_is_between_lower_and_upper_in_the_mean_and_above_upper_at_single_states():
    model, at = _two_modes()
    above = 0
    grid = times(model.schedule, 10, -5.0, 5.0)
    for t, s in pairwise(grid):
        q, (variance, density) = posterior(model.schedule, t, s), at(t)
        of_step = q.variance + q.from_x**2 * variance  # Var[x_s | x_t]
        upper = variance_for_unit_data(model.schedule, t, s)
        assert bool((of_step >= q.variance).all())
        assert float((density * of_step).sum()) <= float(upper) * (1 + 1e-9)
        above += float(of_step.max()) > 1.05 * float(upper)
    assert above >= 5


def test_analytic_variance_is_of_isotropic_data_alone():
    """One number for all directions: too much for the narrow one, too little for the wide one."""
    model = exact.Gaussian(torch.zeros(2, dtype=F64), f64([0.1, 1.0]), VP())
    sampler = Ancestral("analytic", estimate_moments(model, model.draw(20_000)))
    schedule, grid = model.schedule, times(VP(), 4, -6.0, 6.0)
    variances = []
    for std in (0.1, 1.0):
        alone = exact.Gaussian(f64([0.0]), f64([std]), schedule)
        alpha, sigma = schedule(grid)
        law = (alpha * std) ** 2 + sigma**2
        variances.append(float(affine_law(sampler, alone, grid).push(f64(0.0), law[0])[1] / law[-1]))
    assert variances[0] > 1.5
    assert variances[1] < 0.9


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_the_two_meanings_of_eta_agree_in_the_limit_of_short_steps(eta):
    schedule = Rectified()
    apart = []
    for gap in (2.0, 0.5, 0.01):
        t, s = schedule.inverse_log_snr(f64([0.0, gap]))
        grid = torch.stack((t, s))
        fresh = [
            float(affine_law(sampler, gaussian(schedule), grid).fresh.norm())
            for sampler in (ExponentialSDE(eta, order=1), ExponentialSDE(1.0, order=1), DDIM(eta), DDIM(1.0))
        ]
        sde, full, ddim, ancestral = fresh
        assert full == pytest.approx(ancestral)
        assert ddim == pytest.approx(eta * ancestral)
        expected = float(schedule(s)[1]) * (1 - torch.exp(f64(-(eta**2) * gap))) ** 0.5
        assert sde == pytest.approx(float(expected))
        apart.append(abs(sde / ddim - 1))
    assert apart[0] > apart[1] > apart[2]
    assert apart[0] > 0.03 > 0.004 > apart[2]


def test_churn_raises_the_level_by_no_more_than_its_cap():
    """(sqrt(2) - 1) N is the most that N steps take."""
    model, grid = gaussian(VP()), time_grid(VP(), 10)
    most = (2**0.5 - 1) * 10
    laws = [affine_law(Heun(s_churn=churn), model, grid) for churn in (0.5 * most, most, 5 * most)]
    torch.testing.assert_close(laws[1].gain, laws[2].gain)
    assert not torch.allclose(laws[0].fresh.norm(), laws[1].fresh.norm())
