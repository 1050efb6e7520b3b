"""The declared order of every sampler, measured: of the trajectory, or of the law where it draws noise.

No Monte Carlo: the law of a linear sampler on Gaussian data is read off its public interface and propagated exactly.
"""

import pytest
import torch
from laws import (
    FIXED_STEP,
    FOUR_SCHEDULES,
    NOISELESS_SDE,
    SCHEDULES,
    STOCHASTIC,
    by_turns,
    f64,
    gaussian,
    gaussian_law,
    name,
    probability_flow,
    reverse_law,
    slope,
    times,
)

from diffusion.samplers import Ancestral, EulerMaruyama, ExponentialSDE
from diffusion.samplers.affine_law import affine_law
from diffusion.samplers.ode.multistep import Multistep
from diffusion.samplers.sde import sde
from diffusion.schedules import EDM, VP, Cosine, Rectified, time_grid, time_grids
from diffusion.schedules.forward_process import posterior

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
four_schedules = pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
STEPS = [16, 32, 96]
FINER = [32, 128]  # some errors cancel in coarse steps


def _grid(schedule, steps, spacing):
    """Times from log-SNR -4 to 4: uniform in log-SNR, in sigma^(1/7), in the angle, or in the schedule's own time."""
    ends = f64([-4.0, 4.0])
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if spacing == "time":
        t = schedule.inverse_log_snr(ends)
        return t[0] + (t[1] - t[0]) * u
    return schedule.inverse_log_snr(time_grids._log_snrs(spacing, ends[0], ends[1], u, dimension=1))


def _trajectory_errors(sampler, schedule, spacing):
    """The largest error in the second half of the path, in deviations: at its end alone two errors may cancel."""
    denoiser, errors = gaussian(schedule), []
    for steps in STEPS:
        grid = _grid(schedule, steps, spacing)
        mean, variance = gaussian_law(schedule, grid[0])
        x_1 = (mean + variance.sqrt() * f64([-1.5, 0.3, 2.0]))[:, None]
        seen = []
        sampler.sample(denoiser, x_1, grid, callback=lambda step, t, x, x_hat, seen=seen: seen.append(x))
        late, t = torch.stack(seen)[steps // 2 :], grid[1 + steps // 2 :, None, None]
        exact = probability_flow(schedule, x_1[None], grid[0], t)
        errors.append(float(((late - exact) / gaussian_law(schedule, t)[1].sqrt()).abs().max()))
    return errors


# By turns: a sampler meets two schedules on even grids, and the other two kinds of grid that are uneven.
@pytest.mark.parametrize(("sampler", "schedule"), by_turns(FIXED_STEP, FOUR_SCHEDULES), ids=name)
def test_order_of_the_trajectory(sampler, schedule):
    assert not sampler.is_stochastic
    errors = _trajectory_errors(sampler, schedule, "log-snr")
    assert slope(STEPS, errors) == pytest.approx(sampler.order, abs=0.35), errors


@pytest.mark.parametrize(("sampler", "schedule"), by_turns(NOISELESS_SDE, FOUR_SCHEDULES), ids=name)
def test_order_of_solvers_of_the_sde_without_noise(sampler, schedule):
    assert not sampler.is_stochastic
    denoiser, errors = gaussian(schedule), []
    for steps in FINER:
        grid = times(schedule, steps + 1, -3.0, 3.0)
        mean, variance = gaussian_law(schedule, grid[0])
        x_1 = (mean + variance.sqrt() * f64([-1.5, 0.3, 2.0]))[:, None]
        exact = probability_flow(schedule, x_1, grid[0], grid[-1])
        errors.append(float((sampler.sample(denoiser, x_1, grid) - exact).abs().max()))
    assert slope(FINER, errors) == pytest.approx(sampler.order, abs=0.35), errors


UNEVEN = [(VP(), "karras"), (Rectified(), "time"), (EDM(), "angle"), (Cosine(), "time")]


@pytest.mark.parametrize(("sampler", "uneven"), by_turns(FIXED_STEP, UNEVEN, first=1), ids=name)
def test_order_on_uneven_grids(sampler, uneven):
    """Solvers with a memory have weights for the steps that there are, not for equal ones.

    The first step of predictor 3 with a corrector is of order 3 in its length, and long on these grids.
    """
    errors = _trajectory_errors(sampler, *uneven)
    least = 3 if isinstance(sampler, Multistep) and sampler.order == 4 else sampler.order
    assert least - 0.35 < slope(STEPS, errors) < sampler.order + 0.35, errors


@pytest.mark.parametrize(("sampler", "schedule"), by_turns(STOCHASTIC, SCHEDULES, 3, first=1), ids=name)
def test_order_of_the_law(sampler, schedule):
    """From a law that is not the path's own, so that the contraction towards the path is measured, too."""
    assert sampler.is_stochastic
    eta = getattr(sampler, "eta", 1.0)  # ancestral sampling is eta = 1
    denoiser, of_mean, of_variance = gaussian(schedule), [], []
    # Euler's steps are in the schedule's own time, which a learned one crowds in places
    counts = [4 * n for n in STEPS] if schedule.is_learned and isinstance(sampler, EulerMaruyama) else STEPS
    for steps in counts:
        grid = times(schedule, steps + 1, -3.0, 1.0)
        mean, variance = gaussian_law(schedule, grid[0])
        start = mean + 3 * variance.sqrt(), 0.1 * variance
        law = affine_law(sampler, denoiser, grid).push(*start)
        exact = reverse_law(eta, schedule, grid[0], grid[-1], *start)
        of_mean.append(float((law[0] - exact[0]).abs() / exact[1].sqrt()))
        of_variance.append(float((law[1] / exact[1] - 1).abs()))
    assert slope(counts, of_variance) == pytest.approx(sampler.order, abs=0.35), of_variance
    if max(of_mean) > 1e-12:  # with eta = 1 the exponential step has no error in the mean of Gaussian data
        assert slope(counts, of_mean) == pytest.approx(sampler.order, abs=0.35), of_mean
    else:
        assert eta == 1.0


@four_schedules
def test_the_exact_reverse_law_by_quadrature_of_the_sde(schedule):
    """The closed form that the orders are measured against: drift and diffusion integrated by brute force."""
    denoiser, eta = gaussian(schedule), 0.6
    grid = times(schedule, 1001, -3.0, 1.0)
    mean, variance = gaussian_law(schedule, grid[0])
    start = mean + 3 * variance.sqrt(), 0.1 * variance
    t = 0.5 * (grid[1:] + grid[:-1])
    at = torch.stack((torch.zeros_like(t), torch.ones_like(t)), dim=1).reshape(-1, 1)
    drift = sde.reverse_drift(denoiser, at, t.repeat_interleave(2), eta).reshape(-1, 2)
    offsets, rates = drift[:, 0], drift[:, 1] - drift[:, 0]
    g2 = sde.diffusion_squared(schedule, t)
    m, v = start
    for offset, rate, noise, dt in zip(offsets, rates, eta**2 * g2, grid.diff(), strict=True):
        gain = torch.exp(rate * dt)
        m = gain * m + offset * torch.expm1(rate * dt) / rate
        v = gain**2 * v - noise * torch.expm1(2 * rate * dt) / (2 * rate)
    exact = reverse_law(eta, schedule, grid[0], grid[-1], *start)
    torch.testing.assert_close((m, v), exact, rtol=2e-4, atol=2e-4)


@four_schedules
def test_large_eta_in_few_steps(schedule):
    """The exponential step of order 1 never exceeds the path's deviation; order 2 is near it; Euler's blows up."""
    deviations = {}
    for sampler in (ExponentialSDE(2.0, order=1), ExponentialSDE(2.0), EulerMaruyama(2.0)):
        for steps in (10, 40, 160):
            grid = time_grid(schedule, steps)[:-1]
            mean, variance = gaussian_law(schedule, grid[-1])
            m, v = affine_law(sampler, gaussian(schedule), grid).push(*gaussian_law(schedule, grid[0]))
            deviations[sampler, steps] = float((v / variance).sqrt())
            if isinstance(sampler, ExponentialSDE):
                assert float((m - mean).abs() / variance.sqrt()) < 1e-4
    few, more, many = (deviations[ExponentialSDE(2.0, order=1), steps] for steps in (10, 40, 160))
    assert 0.5 < few < more < many < 1.0
    assert more > 0.75
    assert many > 0.9
    few, more, many = (deviations[ExponentialSDE(2.0), steps] for steps in (10, 40, 160))
    assert few == pytest.approx(1.0, abs=0.1)
    assert more == pytest.approx(1.0, abs=0.04)
    assert many == pytest.approx(1.0, abs=0.005)
    assert deviations[EulerMaruyama(2.0), 10] > 10


@every_schedule
def test_the_two_variances_of_ancestral_sampling_enclose_the_truth(schedule):
    """A step's exact variance p(x_s | x_t), for data narrower than N(0, 1), lies between lower and upper."""
    grid = times(schedule, 12)
    t, s = grid[:-1], grid[1:]
    lower = Ancestral("lower").coefficients(schedule, t, s).fresh ** 2
    upper = Ancestral("upper").coefficients(schedule, t, s).fresh ** 2
    (_, v_t), (_, v_s) = gaussian_law(schedule, t), gaussian_law(schedule, s)
    exact = v_s - (schedule(t)[0] / schedule(s)[0] * v_s) ** 2 / v_t
    assert (lower < exact).all()
    assert (exact < upper).all()
    torch.testing.assert_close(lower, posterior(schedule, t, s).variance, rtol=1e-12, atol=0)
