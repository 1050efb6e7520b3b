"""Training times have the density that they claim, and the strata of a batch do not depend on who draws them."""

import laws
import pytest
import torch
from scipy import stats

from diffusion.config import ObjectiveConfig
from diffusion.errors import UserError
from diffusion.objectives import draw_u, time_distribution
from diffusion.schedules import EDM, Rectified
from diffusion.schedules.schedule import log_snr_ends

NAMES = ObjectiveConfig.words("time")
SCHEDULES = pytest.mark.parametrize("schedule", laws.SCHEDULES, ids=laws.name)
TIMES = pytest.mark.parametrize(
    "times", [*map(time_distribution, NAMES), time_distribution("log-normal", 0.5, 0.7)], ids=laws.name
)


@SCHEDULES
@TIMES
def test_the_quantiles_are_those_of_the_density(times, schedule):
    """F(lambda(u)) = 1 - u with F the integral of the density: its total is one, and no draw is misplaced."""
    log_snr = laws.log_snrs(schedule, 60_001)
    density = times.density(schedule, log_snr)
    cdf = torch.cat((torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, log_snr)))
    assert float(cdf[-1]) == pytest.approx(1.0, abs=1e-3)
    u = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    drawn = times.log_snr(schedule, u)
    low, high = log_snr_ends(schedule)
    assert bool((drawn.diff() < 0).all()), "u = 0 is the data end"
    assert bool((drawn > low - 1e-6).all())
    assert bool((drawn < high + 1e-6).all())
    right = torch.searchsorted(log_snr, drawn).clamp(1, len(log_snr) - 1)
    share = (drawn - log_snr[right - 1]) / (log_snr[right] - log_snr[right - 1])
    reached = cdf[right - 1] + share * (cdf[right] - cdf[right - 1])
    assert torch.allclose(reached, 1 - u, atol=2e-3)


def test_log_normal_is_edms_distribution_of_sigma():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    log_sigma = -0.5 * time_distribution("log-normal").log_snr(EDM(), u)
    assert torch.allclose(log_sigma, torch.from_numpy(stats.norm(-1.2, 1.2).ppf(u.numpy())), atol=1e-3)


def test_logit_normal_is_that_of_the_rectified_paths_time():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    schedule = Rectified()
    t = schedule.inverse_log_snr(time_distribution("logit-normal", 0.3, 0.8).log_snr(schedule, u))
    assert torch.allclose(torch.logit(t), torch.from_numpy(stats.norm(0.3, 0.8).ppf(u.numpy())), atol=1e-4)


def test_the_extreme_uniforms_stay_on_the_path():
    u = torch.tensor([0.0, 2.0**-33, 1 - 2.0**-33, 1 - 2.0**-53], dtype=torch.float64)
    for schedule in laws.SCHEDULES:
        for name in NAMES:
            log_snr = time_distribution(name).log_snr(schedule, u)
            assert bool(log_snr.isfinite().all()), (schedule, name)
            assert bool(schedule.inverse_log_snr(log_snr).isfinite().all()), (schedule, name)


def test_a_stratified_batch_has_one_draw_in_each_stratum():
    size = 96
    seen = set()
    for step in range(20):
        u = draw_u(3, step, torch.arange(size), size, stratified=True)
        assert u.dtype == torch.float64
        assert sorted((u * size).floor().long().tolist()) == list(range(size))
        spacings = (u.sort().values * size) % 1.0
        assert float(spacings.max() - spacings.min()) < 1e-9, "one common shift"
        seen.add(round(float(spacings[0]), 9))
    assert len(seen) == 20, "a new shift at every step"


def test_the_common_shift_is_uniform():
    shifts = torch.cat([draw_u(0, step, torch.arange(1), 1, stratified=True) for step in range(600)])
    assert stats.kstest(shifts.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("stratified", [True, False])
def test_the_batch_is_the_same_for_any_number_of_processes(stratified):
    whole = draw_u(1, 7, torch.arange(64), 64, stratified)
    for processes in (2, 4):
        parts = [draw_u(1, 7, positions, 64, stratified) for positions in torch.arange(64).chunk(processes)]
        assert torch.equal(torch.cat(parts), whole)


def test_independent_draws_are_uniform_and_new_at_each_step_and_seed():
    first = draw_u(0, 0, torch.arange(5000), 5000, stratified=False)
    assert stats.kstest(first.numpy(), "uniform").pvalue > 0.01
    for other in (draw_u(0, 1, torch.arange(5000), 5000, False), draw_u(1, 0, torch.arange(5000), 5000, False)):
        assert abs(float(torch.corrcoef(torch.stack((first, other)))[0, 1])) < 0.05


def test_what_a_distribution_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"objective\.time: 'logit'.*Did you mean 'logit-normal'"):
        time_distribution("logit")
    with pytest.raises(UserError, match="does not take them"):
        time_distribution("uniform", mean=0.5)
    with pytest.raises(UserError, match="time_std"):
        time_distribution("log-normal", std=0.0)
