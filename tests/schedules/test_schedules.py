"""Laws of schedules, and each (alpha, sigma) against its paper's formula, written independently."""

import math

import pytest
import torch
from laws import F64, FIXED_SCHEDULES, SCHEDULES, autograd_derivative, f64, log_snrs, name, times

from diffusion.errors import UserError
from diffusion.samplers.sde import sde
from diffusion.schedules import BY_NAME, DDPM, EDM, VE, VP, Cosine, Rectified, SubVP

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@every_schedule
def test_ends_are_finite_and_in_order(schedule):
    assert 0 <= schedule.t_min < schedule.t_max <= 1
    ends = f64([schedule.t_min, schedule.t_max])
    for value in (*schedule(ends), schedule.log_snr(ends), schedule.d_log_alpha(ends), schedule.d_log_snr(ends)):
        assert torch.isfinite(value).all()
    assert (torch.stack(schedule(ends)) > 0).all()


@every_schedule
def test_inverse_log_snr_is_the_inverse(schedule):
    t = times(schedule, 201)
    torch.testing.assert_close(schedule.inverse_log_snr(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    log_snr = log_snrs(schedule, 201)
    torch.testing.assert_close(schedule.log_snr(schedule.inverse_log_snr(log_snr)), log_snr, rtol=1e-9, atol=1e-8)


@every_schedule
def test_inverse_log_snr_goes_on_beyond_the_ends(schedule):
    """A denoiser carried to a path with other ends asks for log-SNRs that its own path never trained on."""
    ends = log_snrs(schedule, 2)
    beyond = ends + f64([-0.1, 0.1])
    t = schedule.inverse_log_snr(beyond)
    assert t[0] > schedule.t_max - 1e-9
    assert t[1] < schedule.t_min + 1e-9
    torch.testing.assert_close(schedule.log_snr(t), beyond, rtol=1e-8, atol=1e-8)


@every_schedule
def test_log_snr_decreases_and_is_that_of_alpha_and_sigma(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 2001, dtype=F64)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    alpha, sigma = schedule(t)
    torch.testing.assert_close(log_snr, 2 * (alpha.log() - sigma.log()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.log_alpha(t), alpha.log(), rtol=1e-9, atol=1e-12)


@every_schedule
def test_derivatives_against_autograd(schedule):
    t = times(schedule, 101)[1:-1] * (1 - 1e-7)  # not on a level of the discrete schedule, where the slope jumps
    for function, derivative in (
        (schedule.log_alpha, schedule.d_log_alpha(t)),
        (schedule.log_snr, schedule.d_log_snr(t)),
        (lambda t: schedule(t)[0], schedule.derivatives(t)[0]),
        (lambda t: schedule(t)[1], schedule.derivatives(t)[1]),
    ):
        torch.testing.assert_close(autograd_derivative(function, t), derivative, rtol=1e-8, atol=1e-10)


@every_schedule
def test_sde_coefficients_by_their_definition(schedule):
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, by autograd on (alpha, sigma) alone."""
    t = times(schedule, 101)[1:-1] * (1 - 1e-7)
    f = autograd_derivative(lambda t: schedule(t)[0].log(), t)
    sigma2 = schedule(t)[1] ** 2
    g2 = autograd_derivative(lambda t: schedule(t)[1] ** 2, t) - 2 * f * sigma2
    torch.testing.assert_close(sde.drift(schedule, t), f, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sde.diffusion_squared(schedule, t), g2, rtol=1e-6, atol=1e-10)
    assert (sde.diffusion_squared(schedule, t) > 0).all()


@every_schedule
def test_float32_follows_float64(schedule):
    t = times(schedule, 101)
    for single, double in zip(schedule(t.float()), schedule(t.float().double()), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=3e-4, atol=1e-6)
    single = schedule.log_snr(t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), schedule.log_snr(t.float().double()), rtol=1e-4, atol=1e-3)
    back = schedule.inverse_log_snr(single)
    assert back.dtype == torch.float32
    # within what the rounding of the log-SNR itself moves the time
    torch.testing.assert_close(back.double(), t, rtol=1e-3, atol=1e-6)


@every_schedule
def test_a_time_may_be_one_number_or_one_a_sample(schedule):
    t = times(schedule, 7)
    methods = (
        schedule.log_alpha,
        schedule.log_snr,
        schedule.d_log_alpha,
        schedule.d_log_snr,
        lambda t: schedule(t)[0],
        lambda t: schedule(t)[1],
        lambda t: schedule.derivatives(t)[0],
        lambda t: schedule.derivatives(t)[1],
        lambda t: schedule.inverse_log_snr(schedule.log_snr(t)),
    )
    for method in methods:
        whole = method(t)
        assert whole.shape == (7,)
        one_by_one = [method(t_i) for t_i in t]
        assert all(value.shape == () for value in one_by_one)
        torch.testing.assert_close(whole, torch.stack(one_by_one), rtol=1e-14, atol=0)


@every_schedule
def test_prior_std(schedule):
    alpha, sigma = schedule(f64(schedule.t_max))
    assert schedule.prior_std == pytest.approx(math.sqrt(alpha**2 + sigma**2), rel=1e-12)


@pytest.mark.parametrize("schedule", FIXED_SCHEDULES, ids=name)
def test_a_schedule_is_its_own_configuration(schedule):
    assert eval(repr(schedule), {type(schedule).__name__: type(schedule)}) == schedule
    assert type(schedule) in BY_NAME.values()


# ---- the papers' formulas ---------------------------------------------------------------------------------------


def _alpha_sigma(schedule, t):
    return [(float(a), float(s)) for a, s in zip(*schedule(t), strict=True)]


def test_vp_is_song_et_al_eq_33():
    low, high = 0.1, 20.0
    for t in (1e-4, 0.01, 0.3, 0.77, 1.0):
        log_mean = -0.25 * t**2 * (high - low) - 0.5 * t * low
        alpha, sigma = VP(low, high)(f64(t))
        assert float(alpha) == pytest.approx(math.exp(log_mean), rel=1e-12)
        assert float(sigma) == pytest.approx(math.sqrt(1 - math.exp(2 * log_mean)), rel=1e-9)


def test_vp_and_sub_vp_coefficients_are_those_of_beta():
    """Eq. 11 and 12 with eq. 32: f = -beta / 2; g^2 = beta, and beta (1 - exp(-2 B)) for sub-VP."""
    t = torch.linspace(0.01, 1, 50, dtype=F64)
    beta = 0.1 + t * 19.9
    b = 0.1 * t + 0.5 * t**2 * 19.9
    torch.testing.assert_close(VP().beta(t), beta)
    for schedule in (VP(), SubVP()):
        torch.testing.assert_close(sde.drift(schedule, t), -0.5 * beta, rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.diffusion_squared(VP(), t), beta, rtol=1e-9, atol=0)
    torch.testing.assert_close(sde.diffusion_squared(SubVP(), t), beta * (1 - torch.exp(-2 * b)), rtol=1e-9, atol=0)


def test_sub_vp_is_song_et_al():
    for t in (1e-3, 0.2, 0.9, 1.0):
        b = 0.1 * t + 0.5 * t**2 * 19.9
        alpha, sigma = SubVP()(f64(t))
        assert float(alpha) == pytest.approx(math.exp(-b / 2), rel=1e-12)
        assert float(sigma) == pytest.approx(1 - math.exp(-b), rel=1e-9)


def test_ve_is_song_et_al_eq_30():
    t = torch.linspace(0, 1, 20, dtype=F64)
    alpha, sigma = VE(0.01, 50.0)(t)
    assert torch.equal(alpha, torch.ones_like(t))
    torch.testing.assert_close(sigma, 0.01 * 5000.0**t, rtol=1e-12, atol=0)
    # eq. 30: dx = sigma_min (sigma_max / sigma_min)^t sqrt(2 log(sigma_max / sigma_min)) dw
    torch.testing.assert_close(
        sde.diffusion_squared(VE(0.01, 50.0), t), 2 * math.log(5000.0) * (0.01 * 5000.0**t) ** 2, rtol=1e-12, atol=0
    )
    assert torch.equal(sde.drift(VE(), t), torch.zeros_like(t))


def test_edm_is_karras_et_al_eq_5():
    """Times i / (N - 1), taken backwards, are the paper's sigma_i."""
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    paper = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    sigma = EDM()(1 - torch.arange(n, dtype=F64) / (n - 1))[1]
    torch.testing.assert_close(sigma, f64(paper), rtol=1e-10, atol=0)


def test_cosine_and_rectified():
    for t in (0.01, 0.4, 0.93):
        assert _alpha_sigma(Cosine(), f64([t]))[0] == pytest.approx(
            (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)), rel=1e-13
        )
        assert _alpha_sigma(Rectified(), f64([t]))[0] == pytest.approx((1 - t, t), rel=1e-15)
    # x' = eps - x on the straight path
    d_alpha, d_sigma = Rectified().derivatives(f64(0.3))
    assert (float(d_alpha), float(d_sigma)) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "arguments", "key"),
    [
        (VP, {"beta_min": 0.0}, "beta_min"),
        (VP, {"beta_min": 30.0}, "beta_max"),
        (SubVP, {"beta_min": -1.0}, "beta_min"),
        (VE, {"sigma_min": 0.0}, "sigma_min"),
        (VE, {"sigma_min": 60.0}, "sigma_max"),
        (EDM, {"sigma_min": -0.1}, "sigma_min"),
        (EDM, {"rho": 0.0}, "rho"),
        (Cosine, {"log_snr_min": 20.0}, "log_snr_max"),
        (Rectified, {"log_snr_max": -20.0}, "log_snr_max"),
        (DDPM, {"steps": 1}, "steps"),
        (DDPM, {"beta_end": 1.0}, "beta_end"),
        (DDPM, {"betas": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_numbers_that_make_no_path_are_refused(kind, arguments, key):
    with pytest.raises(UserError, match=key):
        kind(**arguments)
