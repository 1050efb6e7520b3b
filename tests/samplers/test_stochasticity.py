"""The stochasticity as a profile over log-SNR: its clock, its text, and the law of the samplers that follow it."""

import pytest
import torch
from laws import F64, FOUR_SCHEDULES, f64, gaussian, gaussian_law, name, reverse_law, slope

from diffusion import samplers
from diffusion.errors import UserError
from diffusion.numerics.random import Noise
from diffusion.samplers import DPMSolverSDE, EulerMaruyama, ExponentialSDE, NoiseProfile, SASolver
from diffusion.samplers.affine_law import affine_law
from diffusion.schedules import VP, time_grid

PROFILE = NoiseProfile((0.5, 1.5, 0.0), (-1.0, 0.5))


def test_the_clock_is_the_integral_of_eta_squared():
    log_snr = torch.linspace(-4.0, 4.0, 4001, dtype=F64)
    clock = PROFILE.clock(log_snr)
    middle = 0.5 * (log_snr[1:] + log_snr[:-1])
    torch.testing.assert_close(clock.diff(), PROFILE.at(middle) ** 2 * log_snr.diff(), rtol=1e-9, atol=1e-12)
    assert float(PROFILE.clock(f64(0.0))) == 0.0
    assert float(NoiseProfile.of(2.0).clock(f64(-3.0))) == -12.0


def test_a_profile_as_text():
    assert NoiseProfile.of("1@-3:5") == NoiseProfile((0.0, 1.0, 0.0), (-3.0, 5.0))
    assert NoiseProfile.of(0.5) == NoiseProfile((0.5,))
    assert NoiseProfile.of(PROFILE) is PROFILE
    for text in ("", "1", "one", "1@", "1@3", "1@-3:", "1@5:-3", "-1@-3:5", "1@1:2:3", "nan", "inf"):
        with pytest.raises(UserError, match="eta"):
            ExponentialSDE(text)
    with pytest.raises(UserError, match="eta: found '1'; accepted: a number, or ETA@LOW:HIGH"):
        samplers.build("sde", eta="1")
    assert samplers.build("sde", eta="1@-3:5") == ExponentialSDE("1@-3:5")
    with pytest.raises(UserError, match="sampler 'ddim' takes a number"):
        samplers.build("ddim", eta="1@-3:5")


@pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
@pytest.mark.parametrize(
    "sampler",
    [
        ExponentialSDE(PROFILE, order=1),
        ExponentialSDE(PROFILE),
        DPMSolverSDE(PROFILE),
        SASolver(PROFILE, corrector=0),
        EulerMaruyama(PROFILE),
    ],
    ids=name,
)
def test_the_law_under_a_profile(sampler, schedule):
    """The exact law is that of one eta after the other; the order is the declared one on grids that meet the edges."""
    edges = schedule.inverse_log_snr(f64([-3.0, -1.0, 0.5, 1.0]))
    mean, variance = gaussian_law(schedule, edges[0])
    start = exact = mean + 3 * variance.sqrt(), 0.1 * variance
    for eta, t, s in zip(PROFILE.etas, edges[:-1], edges[1:], strict=True):
        exact = reverse_law(eta, schedule, t, s, *exact)
    counts, errors = [32, 64, 128], []
    for steps in counts:
        grid = schedule.inverse_log_snr(torch.linspace(-3.0, 1.0, steps + 1, dtype=F64))
        law = affine_law(sampler, gaussian(schedule), grid).push(*start)
        errors.append(max(float((law[0] - exact[0]).abs() / exact[1].sqrt()), float((law[1] / exact[1] - 1).abs())))
    # a multistep solver carries an output across an edge, where the path has a kink
    assert slope(counts, errors) == pytest.approx(sampler.order, abs=0.4), errors


def test_no_noise_is_drawn_where_the_dial_is_0():
    drawn = []

    def noise(step):
        drawn.append(step)
        return torch.zeros(1, 1, dtype=F64)

    grid = VP().inverse_log_snr(torch.linspace(-4.0, 4.0, 9, dtype=F64))
    ExponentialSDE("1@-0.99:1.99").sample(gaussian(VP()), torch.ones(1, 1, dtype=F64), grid, noise)
    assert drawn == [3, 4, 5]
    assert not ExponentialSDE(NoiseProfile((0.0, 0.0), (1.0,))).is_stochastic


def test_a_huge_eta_is_drawing_anew_at_each_step():
    """rho = 0: x_s = alpha_s x_hat + sigma_s z, with x_hat of the step itself."""
    grid, denoiser = time_grid(VP(), 8)[:-1], gaussian(VP())
    x = f64([[0.3], [-2.0]])
    noise = Noise(0, torch.arange(2), (1,), F64)
    sampler = ExponentialSDE(30.0, order=1)
    along = sampler.noise_along(noise, VP(), grid)
    seen = []
    sampler.sample(denoiser, x, grid, along, callback=lambda *args: seen.append(args))
    for step, t, x_s, x_hat in seen:
        alpha, sigma = VP()(f64(t))
        torch.testing.assert_close(x_s, alpha * x_hat + sigma * along(step))
