"""Samplers of the SDE: what their docstrings claim to equal, and those whose steps are not linear."""

from itertools import pairwise

import pytest
import torch
from laws import (
    F64,
    FOUR_SCHEDULES,
    MEAN,
    SCHEDULES,
    STD,
    by_turns,
    f64,
    gaussian,
    gaussian_law,
    mixture,
    name,
    probability_flow,
    reverse_law,
    seeded,
    slope,
    times,
)

from diffusion import sample
from diffusion.denoisers import exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import SolverError, UserError
from diffusion.numerics.random import Noise
from diffusion.samplers import AdaptiveSDE, DPMSolverPP2M, DPMSolverSDE, ExponentialSDE, PredictorCorrector, SASolver
from diffusion.samplers.affine_law import affine_law
from diffusion.schedules import EDM, VP, time_grid

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def _noise(step):
    return seeded(5, 2, seed=100 + step)


def _run(sampler, schedule, grid=None):
    grid = times(schedule, 13, -6.0, 6.0) if grid is None else grid
    x_1 = torch.hypot(*schedule(grid[0])) * seeded(5, 2)
    return x_1, grid, sampler.sample(mixture(schedule), x_1, grid, _noise)


@pytest.mark.parametrize(("eta", "schedule"), by_turns([0.0, 0.7, 1.0], SCHEDULES), ids=name)
def test_second_order_is_sde_dpm_solver_pp_2m(schedule, eta):
    """The paper's eq. 18 in half log-SNR, for any eta; on an uneven grid."""
    grid = times(schedule, 60, -6.0, 6.0)[[0, 2, 5, 9, 14, 19, 25, 30, 33, 40, 50, 59]]
    x, grid, result = _run(ExponentialSDE(eta), schedule, grid)
    denoiser, last = mixture(schedule), None
    for step, (t, s) in enumerate(pairwise(grid)):
        (alpha_s, sigma_s), (_, sigma_t) = schedule(s), schedule(t)
        h = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
        x_hat = denoiser(x, t)
        d = x_hat if last is None else x_hat + 0.5 * h / last[1] * (x_hat - last[0])
        gain, noise = -torch.expm1(-(1 + eta**2) * h), sigma_s * torch.sqrt(-torch.expm1(-2 * eta**2 * h))
        x = sigma_s / sigma_t * torch.exp(-(eta**2) * h) * x + alpha_s * gain * d + noise * _noise(step)
        last = x_hat, h
    torch.testing.assert_close(result, x, **CLOSE)


@every_schedule
def test_without_noise_it_is_dpm_solver_pp(schedule):
    """In the paper's form of the second weight, (1 - exp(-h)) / 2; the deterministic sampler's may be the exact one."""
    counts = [20, 80]
    differences = []
    for steps in counts:
        grid = times(schedule, steps + 1, -4.0, 4.0)
        one, other = (_run(sampler, schedule, grid)[2] for sampler in (ExponentialSDE(0.0), DPMSolverPP2M()))
        differences.append(float((one - other).abs().max()) + 1e-12)
    assert differences[0] < 0.05
    assert max(differences) < 1e-8 or slope(counts, differences) > 1.6


@pytest.mark.parametrize(("eta", "schedule"), by_turns([0.0, 1.0, 1.5], SCHEDULES), ids=name)
def test_sa_solver_without_corrector_is_sde_dpm_solver_pp_2m(schedule, eta):
    expected = _run(ExponentialSDE(eta), schedule)[2]
    torch.testing.assert_close(_run(SASolver(eta, 2, 0), schedule)[2], expected, **CLOSE)
    first = _run(ExponentialSDE(eta, order=1), schedule)[2]
    torch.testing.assert_close(_run(SASolver(eta, 1, 0), schedule)[2], first, **CLOSE)


@every_schedule
def test_dpm_solver_sde_with_noise_of_its_halves_is_a_step_with_the_whole(schedule):
    """Where x_hat does not change, two halves are one step: the law of one step is that of order 1."""
    denoiser = exact.Gaussian(f64([MEAN]), f64([1e-9]), schedule)
    grid = times(schedule, 5, -6.0, 4.0)
    start = gaussian_law(schedule, grid[0])
    one, other = (affine_law(s, denoiser, grid).push(*start) for s in (DPMSolverSDE(1.3), ExponentialSDE(1.3, order=1)))
    torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize(("memory", "eta"), by_turns([(2, 1), (3, 2), (3, 3)], [0.5, 1.0, 1.7]), ids=name)
def test_order_of_the_law_of_sa_solver(memory, eta):
    """2; the error of the corrected solver is small and changes its sign, so that fine grids are needed to see it."""
    sampler, schedule = SASolver(eta, *memory), VP()
    counts, errors = [128, 512], []
    for steps in counts:
        grid = times(schedule, steps + 1, -3.0, 1.0)
        mean, variance = gaussian_law(schedule, grid[0])
        start = mean + 3 * variance.sqrt(), 0.1 * variance
        law = affine_law(sampler, gaussian(schedule), grid).push(*start)
        errors.append(float((law[1] / reverse_law(eta, schedule, grid[0], grid[-1], *start)[1] - 1).abs()))
    assert errors[0] < 1e-4
    assert slope(counts, errors) == pytest.approx(sampler.order, abs=0.6), errors


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 1), (2, 2), (3, 3)])
def test_order_of_sa_solver_without_noise(predictor, corrector):
    """At least the declared one: the error of the first step, which limits it, is small."""
    sampler, schedule, counts, errors = SASolver(0.0, predictor, corrector), VP(), [64, 256], []
    for steps in counts:
        grid = times(schedule, steps + 1, -3.0, 1.0)
        x_1 = f64([[-1.5], [2.0]])
        exact_x = probability_flow(schedule, x_1, grid[0], grid[-1])
        errors.append(float((sampler.sample(gaussian(schedule), x_1, grid) - exact_x).abs().max()))
    assert sampler.order - 0.35 < slope(counts, errors), errors


@pytest.mark.parametrize("eta", [1.0, 2.0])
@pytest.mark.parametrize("kind", [ExponentialSDE, SASolver, DPMSolverSDE], ids=lambda kind: kind.__name__)
def test_no_second_order_step_blows_up(kind, eta):
    for schedule in FOUR_SCHEDULES:
        for steps in (5, 10, 20):
            grid = time_grid(schedule, steps)[:-1]
            _, variance = gaussian_law(schedule, grid[-1])
            law = affine_law(kind(eta), gaussian(schedule), grid).push(*gaussian_law(schedule, grid[0]))
            assert 0.35 < float((law[1] / variance).sqrt()) < 1.15, (schedule, steps)


# Predictor-corrector: the length of a Langevin step depends on the state; its law is measured, in 64 dimensions.


def _wide(schedule):
    return exact.Gaussian(f64([MEAN] * 64), f64([STD] * 64), schedule)


@pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
def test_the_corrector_brings_the_law_nearer(schedule):
    model, deviations = _wide(schedule), []
    for sampler in (ExponentialSDE(order=1), PredictorCorrector(), PredictorCorrector(corrections=4)):
        x = sample(model, 100, sampler, steps=20, dtype=F64)
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
        deviations.append(float(x.std() / STD))
    assert deviations[0] < deviations[1] < deviations[2] < 1.05


@pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
def test_langevin_steps_hold_the_law_of_the_path(schedule):
    """From the exact law at s, with a predictor that does not move: the variance grows by r^2."""
    model = _wide(schedule)
    ends = times(schedule, 2, 0.0, 1e-3)
    mean, variance = gaussian_law(schedule, ends[0])
    noise = Noise(0, torch.arange(300), (64,), F64)
    x = mean + variance.sqrt() * noise.initial()
    x = PredictorCorrector(snr=0.2, corrections=50).sample(model, x, ends, noise)
    assert float(x.mean() - mean) == pytest.approx(0.0, abs=0.02)
    assert float(x.var() / variance) == pytest.approx(1.0 / (1.0 - 0.2**2), abs=0.03)


def test_a_sample_is_corrected_by_its_own_norm():
    model, grid = mixture(VP()), time_grid(VP(), 10)
    noise, x_1 = Noise(0, torch.arange(5), (2,), F64), seeded(5, 2)
    together = PredictorCorrector().sample(model, x_1, grid, noise)
    alone = PredictorCorrector().sample(model, x_1[3:4], grid, Noise(0, torch.tensor([3]), (2,), F64))
    torch.testing.assert_close(together[3:4], alone, rtol=1e-10, atol=1e-10)


# Adaptive steps.


@pytest.mark.parametrize("schedule", FOUR_SCHEDULES[:3], ids=name)
def test_adaptive_steps_draw_the_data(schedule):
    model = _wide(schedule)
    for eta in (0.0, 1.0):
        x = sample(model, 30, AdaptiveSDE(eta), dtype=F64)
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
        assert float(x.std() / STD) == pytest.approx(0.97, abs=0.06)


def test_a_smaller_tolerance_asks_more_and_ends_nearer_to_the_path():
    """The path of a fine grid on the same noise."""
    model = mixture(VP())
    path = sample(model, 12, DPMSolverSDE(), steps=200, dtype=F64)
    errors, asked = [], []
    for tolerance in (0.1, 0.01):
        with count_evaluations(model) as count:
            x = sample(model, 12, AdaptiveSDE(tolerance=tolerance), dtype=F64)
        errors.append(float((x - path).abs().mean()))
        asked.append(count.rows / 12)
    assert errors[1] < 0.5 * errors[0] < 0.2
    assert 20 < asked[0] < 0.5 * asked[1]


def test_a_batch_mate_changes_nothing():
    model, sampler = mixture(EDM()), AdaptiveSDE(tolerance=0.3)
    together = sample(model, 8, sampler, dtype=F64)
    for i in (0, 7):
        torch.testing.assert_close(sample(model, 1, sampler, dtype=F64, start=i)[0], together[i], rtol=1e-9, atol=1e-9)


def test_an_onlooker_of_adaptive_steps_sees_the_grid():
    model, grid, seen = mixture(VP()), time_grid(VP(), 6), []
    noise = Noise(0, torch.arange(5), (2,), F64)
    x_1 = noise.initial()
    x = AdaptiveSDE(tolerance=0.1).sample(model, x_1, grid, noise, callback=lambda *args: seen.append(args))
    assert [time for _, time, *_ in seen] == grid[1:].tolist()
    unseen = AdaptiveSDE(tolerance=0.1).sample(model, x_1, grid, noise)
    assert float((x - unseen).abs().mean()) < 0.1


def test_adaptive_steps_that_cannot_go_on():
    model, noise = mixture(VP()), Noise(0, torch.arange(5), (2,), F64)
    with pytest.raises(UserError, match="an adaptive solver"):
        AdaptiveSDE().sample(model, seeded(5, 2), time_grid(VP(), 5), _noise)
    with pytest.raises(SolverError, match="gave up after 3 steps"):
        AdaptiveSDE(max_steps=3).sample(model, seeded(5, 2), time_grid(VP(), 5), noise)
    with pytest.raises(SolverError, match="not finite"):
        AdaptiveSDE().sample(model, torch.inf * seeded(5, 2), time_grid(VP(), 5), noise)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExponentialSDE(order=3), "order: found 3"),
        (lambda: DPMSolverSDE(midpoint=1.0), "midpoint"),
        (lambda: SASolver(predictor=0), "predictor: found 0"),
        (lambda: SASolver(corrector=5), "corrector: found 5"),
        (lambda: PredictorCorrector(snr=0.0), "snr"),
        (lambda: PredictorCorrector(corrections=0), "corrections"),
        (lambda: AdaptiveSDE(tolerance=1.5), "tolerance"),
    ],
)
def test_settings_that_make_no_sampler_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
