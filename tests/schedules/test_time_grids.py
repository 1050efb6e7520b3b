"""Grids: from t_max to clean data, decreasing, uniform in the variable that their name says."""

import math

import pytest
import torch
from laws import F64, SCHEDULES, name

from diffusion.config import GRIDS, STRIDES
from diffusion.errors import UserError
from diffusion.schedules import DDPM, EDM, VP, Cosine, time_grid
from diffusion.schedules.time_grids import default_end

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@every_schedule
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid not in STRIDES])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 250])
def test_a_grid_falls_from_the_start_of_the_path_to_clean_data(schedule, grid, steps):
    t = time_grid(schedule, steps, grid)
    assert t.dtype == F64
    assert t.shape == (steps + 1,)
    assert float(t[0]) == schedule.t_max
    assert float(t[-1]) == 0.0
    assert (t.diff() < 0).all()
    if steps > 1:
        end = min(default_end(grid, steps), float(schedule.log_snr(torch.tensor(schedule.t_min, dtype=F64))))
        assert float(schedule.log_snr(t[-2])) == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 250, 1000])
def test_strides_are_of_whole_levels(steps):
    """Every (T / steps)-th of T levels, from the last down or from the first up (arXiv 2305.08891, table 2)."""
    stride = 1000 // steps
    levels = {"trailing": range(1000, 0, -stride), "leading": range(1001 - stride, 0, -stride)}
    for grid, numbers in levels.items():
        expected = torch.tensor([*numbers, 0], dtype=F64) / 1000
        torch.testing.assert_close(time_grid(DDPM(), steps, grid), expected, rtol=0, atol=1e-15)


def test_strides_are_no_smaller_than_those_of_the_levels():
    for grid in STRIDES:
        with pytest.raises(UserError, match="at most 100"):
            time_grid(DDPM(100), 101, grid)
        with pytest.raises(UserError, match="log_snr_end"):
            time_grid(DDPM(), 10, grid, log_snr_end=5.0)


def _assert_uniform(value):
    torch.testing.assert_close(value, torch.linspace(float(value[0]), float(value[-1]), len(value), dtype=F64))


@every_schedule
def test_grids_are_uniform_in_their_variable(schedule):
    def inner(grid):
        return time_grid(schedule, 30, grid)[:-1]

    def ratio(t):
        alpha, sigma = schedule(t)
        return sigma / alpha

    _assert_uniform(schedule.log_snr(inner("log-snr")))
    _assert_uniform(torch.atan((schedule.log_snr(inner("cauchy")) - 1.0) / 4.0))
    for d in (1, 2, 3072):
        placed = schedule.log_snr(time_grid(schedule, 30, "shifted", dimension=d)[:-1])
        _assert_uniform(torch.atan((placed - 2.5 + 0.5 * math.log(d)) / (2.5 + 0.2 * math.log(d))))
    _assert_uniform(ratio(inner("karras")) ** (1 / 7))
    _assert_uniform(torch.atan(ratio(inner("angle"))))
    _assert_uniform(inner("time"))
    quadratic = inner("quadratic")
    _assert_uniform(((quadratic - quadratic[-1]) / (quadratic[0] - quadratic[-1])).clamp(min=0).sqrt())


def test_grids_by_their_papers():
    """EDM's uniform times are its own grid; the cosine schedule's uniform times are the grid in angle."""
    edm = EDM(sigma_min=0.01)
    torch.testing.assert_close(time_grid(edm, 18, "karras"), time_grid(edm, 18, "time"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(time_grid(Cosine(), 18, "angle"), time_grid(Cosine(), 18, "time"), rtol=1e-9, atol=1e-12)


def test_the_end_of_the_grid_can_be_moved():
    t = time_grid(VP(), 10, log_snr_end=4.0)
    assert float(VP().log_snr(t[-2])) == pytest.approx(4.0, abs=1e-9)


def test_the_default_ends_later_with_more_steps_and_never_before_it_starts():
    path = VP(log_snr_max=30.0)
    ends = [float(path.log_snr(time_grid(path, steps, "shifted")[-2])) for steps in (2, 10, 100)]
    assert ends == pytest.approx([3 * math.log(steps) for steps in (2, 10, 100)], abs=1e-6)
    late = Cosine(log_snr_min=5.0)
    assert float(late.log_snr(time_grid(late, 2, "shifted")[-2])) == pytest.approx(6.0, abs=1e-6)


def test_unknown_names_and_no_steps_are_refused():
    with pytest.raises(UserError, match="dimension: found 0; must be at least 1"):
        time_grid(VP(), 10, "shifted", dimension=0)
    with pytest.raises(UserError, match="Did you mean 'karras'"):
        time_grid(VP(), 10, "karas")
    for steps in (0, -3):
        with pytest.raises(UserError, match="at least 1"):
            time_grid(VP(), steps)


def test_a_thousand_steps_in_time_are_the_levels_of_ddpm():
    levels = torch.arange(1000, -1, -1, dtype=torch.float64) / 1000
    assert torch.allclose(time_grid(DDPM(), 1000, "time"), levels, rtol=0, atol=1e-12)
