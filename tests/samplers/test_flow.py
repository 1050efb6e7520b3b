"""The probability-flow ODE in the canonical angle, along exact trajectories."""

import pytest
import torch
from laws import F64, SCHEDULES, f64, gaussian, gaussian_law, mixture, name, seeded

from diffusion.samplers.ode import flow

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@every_schedule
def test_angle_and_scale_are_polar_coordinates_of_the_path(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 50, dtype=F64)
    alpha, sigma = schedule(t)
    r, phi = flow.scale(schedule, t), flow.angle(schedule, t)
    torch.testing.assert_close(r * torch.cos(phi), alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(r * torch.sin(phi), sigma, rtol=1e-9, atol=1e-12)


@every_schedule
def test_the_field_is_the_derivative_of_an_exact_trajectory(schedule):
    field = flow.ProbabilityFlow(gaussian(schedule))
    for log_snr in (-3.0, 0.5, 4.0):
        h = 1e-5
        z, phi = [], []
        for shifted in (log_snr - h, log_snr, log_snr + h):
            t = schedule.inverse_log_snr(f64(shifted))
            mean, variance = gaussian_law(schedule, t)
            z.append((mean + 1.3 * variance.sqrt()) / flow.scale(schedule, t))  # 1.3 deviations all the way
            phi.append(flow.angle(schedule, t))
        expected = (z[2] - z[0]) / (phi[2] - phi[0])
        torch.testing.assert_close(field(phi[1], z[1].reshape(1, 1))[0, 0], expected, rtol=1e-6, atol=1e-6)
    assert field.evaluations == 3


def test_the_field_is_the_same_on_every_path():
    z, phi = seeded(6, 2), f64(0.8)
    fields = [flow.ProbabilityFlow(mixture(schedule))(phi, z) for schedule in SCHEDULES]
    for field in fields[1:]:
        torch.testing.assert_close(field, fields[0], rtol=1e-8, atol=1e-8)


def test_the_norm_of_a_batch_is_that_of_its_worst_sample():
    rows = f64([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    assert float(flow.largest_sample_rms(rows)) == pytest.approx((25 / 2) ** 0.5)
    assert float(flow.largest_sample_rms(rows)) == float(flow.largest_sample_rms(rows.repeat(10, 1)))


def test_solver_errors_name_the_noise_level():
    field = flow.ProbabilityFlow(mixture(SCHEDULES[0]), max_evaluations=1)
    z, phi = seeded(2, 2), torch.atan(torch.exp(f64(-1.0)))  # log-SNR 2
    field(phi, z)
    with pytest.raises(flow.SolverError, match=r"gave up after 1 evaluations at log-SNR 2\.00"):
        field(phi, z)
    with pytest.raises(flow.SolverError, match=r"not finite at log-SNR 2\.00"):
        flow.ProbabilityFlow(mixture(SCHEDULES[0]))(phi, z * torch.nan)
