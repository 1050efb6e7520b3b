"""Adaptive solvers: the error follows the tolerance, for each sample whatever its batch mates, and is counted."""

from functools import cache

import pytest
import torch
from laws import (
    FIXED_STEP,
    FOUR_SCHEDULES,
    by_turns,
    f64,
    gaussian,
    gaussian_law,
    mixture,
    name,
    probability_flow,
    seeded,
    times,
)

from diffusion.denoisers import exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import SolverError, UserError
from diffusion.samplers import ADAPTIVE, ODE, AdaptiveSDE
from diffusion.schedules import VP

every_method = pytest.mark.parametrize("method", ADAPTIVE)


@pytest.mark.parametrize(("method", "schedule"), by_turns(ADAPTIVE, FOUR_SCHEDULES), ids=name)
def test_the_error_falls_with_the_tolerance(method, schedule):
    grid = times(schedule, 2, -6.0, 8.0)
    mean, variance = gaussian_law(schedule, grid[0])
    x_1 = (mean + variance.sqrt() * f64([-1.5, 0.3, 2.0]))[:, None]
    truth = probability_flow(schedule, x_1, grid[0], grid[1])
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7) if ADAPTIVE[method] > 2 else (1e-2, 1e-3, 1e-4):
        error = (ODE(method, tolerance).sample(gaussian(schedule), x_1, grid) - truth).abs().max()
        errors.append(float(error))
        assert errors[-1] < 20 * tolerance
    assert errors[2] < errors[1] <= errors[0]  # at the largest, the first steps may do already


@cache
def _hard_and_easy():
    """A cluster of narrow modes that one start must choose between, where the flow takes it; 63 starts far from any
    choice."""
    means = f64([[2.0, 0.0], [2.3, 0.0], [-3.0, 0.0]])
    model = exact.GaussianMixture(means, f64([0.02, 0.02, 1.0]), VP())
    grid = times(VP(), 2, -8.0, 9.0)
    hard = f64([[1.2, 0.1]])
    easy = f64([[-1.5, 0.0]]) + 0.3 * seeded(63, 2)
    truth = ODE("dopri8", 1e-11).sample(model, hard, grid)
    return model, grid, hard, torch.cat((easy[:31], hard, easy[31:])), truth


@every_method
def test_batch_mates_change_nothing_beyond_the_tolerance(method):
    model, grid, hard, batch, truth = _hard_and_easy()
    sampler = ODE(method, 1e-4)
    alone = sampler.sample(model, hard, grid)
    among = sampler.sample(model, batch, grid)[31:32]
    assert float((alone - truth).abs().max()) < 5e-3
    assert float((among - truth).abs().max()) < 5e-3


def test_an_average_over_the_batch_would_have_failed(monkeypatch):
    """The test above can fail: with torchdiffeq's own norm, the easy mates hide the hard sample's error."""
    model, grid, _, batch, truth = _hard_and_easy()
    kept = ODE("dopri5", 1e-3).sample(model, batch, grid)[31:32]
    monkeypatch.setattr("diffusion.samplers.ode.flow.largest_sample_rms", lambda rows: rows.pow(2).mean().sqrt())
    averaged = ODE("dopri5", 1e-3).sample(model, batch, grid)[31:32]
    assert float((averaged - truth).abs().max()) > 10 * float((kept - truth).abs().max())


@every_method
def test_evaluations_are_counted_and_capped(method):
    model, x_1 = mixture(VP()), seeded(5, 2)
    grid = times(VP(), 2)
    counts = []
    for tolerance in (1e-2, 1e-4):
        with count_evaluations(model) as count:
            ODE(method, tolerance).sample(model, x_1, grid)
        assert count.rows % 5 == 0
        counts.append(count.rows // 5)
    assert 5 < counts[0] < counts[1] < 2000
    ODE(method, 1e-4, max_evaluations=counts[1]).sample(model, x_1, grid)
    with pytest.raises(SolverError, match=r"gave up after .* log-SNR"):
        ODE(method, 1e-4, max_evaluations=counts[1] - 1).sample(model, x_1, grid)


def test_a_cap_below_one_is_refused():
    with pytest.raises(UserError, match="max_evaluations: found 0; must be at least 1"):
        ODE(max_evaluations=0)
    with pytest.raises(UserError, match="max_steps: found 0; must be at least 1"):
        AdaptiveSDE(max_steps=0)


class _Broken(exact.Gaussian):
    def forward(self, x_t, t, cond=None):
        x_hat = super().forward(x_t, t, cond)
        return x_hat / 0 if float(self.schedule.log_snr(t)) > 2 else x_hat


@pytest.mark.parametrize("sampler", [*(sampler for sampler in FIXED_STEP if isinstance(sampler, ODE)), ODE()], ids=name)
def test_a_denoiser_that_is_not_finite_stops_the_solve(sampler):
    with pytest.raises(SolverError, match="not finite at log-SNR"):
        sampler.sample(_Broken(torch.zeros(2), torch.ones(2), VP()), seeded(5, 2), times(VP(), 20))


def test_the_path_of_a_float32_state_is_that_of_a_float64_one():
    model, x_1, grid = mixture(VP()), seeded(50, 2), times(VP(), 2, -8.0, 9.0)
    double = ODE(tolerance=1e-5).sample(model, x_1, grid)
    single = ODE(tolerance=1e-5).sample(model, x_1.float(), grid)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_callback_of_an_adaptive_solver_by_dense_output():
    schedule = VP()
    grid, seen = times(schedule, 12, -6.0, 8.0), []
    x_1 = f64([[0.3], [-1.0]])
    ODE(tolerance=1e-7).sample(gaussian(schedule), x_1, grid, callback=lambda *args: seen.append(args))
    assert len(seen) == 11
    for _, time, x, _ in seen:
        torch.testing.assert_close(x, probability_flow(schedule, x_1, grid[0], f64(time)), rtol=1e-5, atol=1e-5)
