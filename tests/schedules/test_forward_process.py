"""q(x_t | x) and q(x_s | x_t, x), against conditioning of the joint Gaussian."""

import pytest
import torch
from laws import F64, SCHEDULES, f64, name, seeded, times

from diffusion.schedules import VP, Rectified
from diffusion.schedules.forward_process import diffuse, posterior, variance_for_unit_data

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def _pairs(schedule):
    t = times(schedule, 40)
    return torch.cat((t[:-1], t[:-5], t[:1])), torch.cat((t[1:], t[5:], t[-1:]))


def _joint(schedule, t, s, data_variance):
    """Covariance of (x_s, x_t) from the transition x_t = (alpha_t / alpha_s) x_s + fresh noise of the chain."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    a = alpha_t / alpha_s
    fresh = sigma_t**2 - a**2 * sigma_s**2
    v_s = alpha_s**2 * data_variance + sigma_s**2
    return v_s, a * v_s, a**2 * v_s + fresh


@every_schedule
def test_posterior_by_conditioning_the_joint(schedule):
    t, s = _pairs(schedule)
    (alpha_t, _), (alpha_s, _) = schedule(t), schedule(s)
    v_s, cov, v_t = _joint(schedule, t, s, 0.0)  # x given: only the noise varies
    gain = cov / v_t
    q = posterior(schedule, t, s)
    torch.testing.assert_close(q.from_x_t, gain, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(q.from_x, alpha_s - gain * alpha_t, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(q.variance, v_s - gain * cov, rtol=1e-5, atol=1e-10)
    assert (q.variance > 0).all()


@every_schedule
def test_variance_for_unit_data_by_conditioning_the_joint(schedule):
    t, s = _pairs(schedule)
    v_s, cov, v_t = _joint(schedule, t, s, 1.0)
    torch.testing.assert_close(variance_for_unit_data(schedule, t, s), v_s - cov**2 / v_t, rtol=1e-5, atol=1e-9)


@every_schedule
def test_the_posterior_has_the_marginal_of_the_path(schedule):
    """If x_t ~ q(x_t | x), then x_s ~ q(x_s | x): mean and variance."""
    t, s = _pairs(schedule)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    q = posterior(schedule, t, s)
    torch.testing.assert_close(q.from_x_t * alpha_t + q.from_x, alpha_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(q.from_x_t**2 * sigma_t**2 + q.variance, sigma_s**2, rtol=1e-9, atol=1e-12)


def test_diffuse():
    x, eps = seeded(3, 2, 4), seeded(3, 2, 4, seed=1)
    t = f64([0.1, 0.5, 0.9])
    expected = torch.stack([(1 - u) * a + u * e for u, a, e in zip(t, x, eps, strict=True)])
    torch.testing.assert_close(diffuse(Rectified(), x, t, eps), expected)
    torch.testing.assert_close(diffuse(Rectified(), x, t[1], eps), 0.5 * (x + eps))
    assert diffuse(VP(), x.float(), t, eps.float()).dtype == torch.float32
    assert diffuse(VP(), x, t.float(), eps).dtype == F64
