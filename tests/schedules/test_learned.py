"""What a learned schedule has beyond the laws of every schedule: held ends, parameters, and one way to reach them."""

import copy

import pytest
import torch
from laws import F64, f64, learned, log_snrs

from diffusion.errors import UserError
from diffusion.schedules import Learned, Schedule
from diffusion.schedules.learned import UNIFORM


def with_weights(*weights: float, log_snr_max=14.0, log_snr_min=-10.0) -> Learned:
    schedule = Learned(log_snr_max, log_snr_min, len(weights) - 1)
    with torch.no_grad():
        schedule.log_density.copy_(torch.tensor(weights))
    return schedule


EXTREME = (3.0, -5.0, 0.0, 40.0, -40.0, 2.0, 2.0, -1.0)


def test_a_fresh_one_is_linear_in_log_snr():
    schedule = Learned(13.3, -5.0, 7)
    t = torch.linspace(schedule.t_min, 1.0, 101, dtype=F64)
    torch.testing.assert_close(schedule.log_snr(t), torch.linspace(13.3, -5.0, 101, dtype=F64))
    torch.testing.assert_close(schedule.d_log_snr(t), torch.full_like(t, -18.3 / (1 - schedule.t_min)))


@pytest.mark.parametrize(("high", "low"), [(14.0, -10.0), (13.3, -5.0), (0.1, -0.2)])
@pytest.mark.parametrize("weights", [EXTREME, (0.1, -0.3), (0.0, 0.1, 0.2, -0.5)])
def test_the_ends_are_held_and_the_path_is_monotone_whatever_the_weights(high, low, weights):
    schedule = with_weights(*weights, log_snr_max=high, log_snr_min=low)
    ends = f64([schedule.t_min, schedule.t_max])
    assert schedule.log_snr(ends).tolist() == [high, low]
    torch.testing.assert_close(schedule.inverse_log_snr(f64([high, low])), ends, rtol=1e-14, atol=1e-18)
    t = torch.linspace(schedule.t_min, schedule.t_max, 3001, dtype=F64)
    assert (schedule.log_snr(t).diff() < 0).all()
    torch.testing.assert_close(schedule.inverse_log_snr(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", [learned(), with_weights(*EXTREME)], ids=["random", "extreme"])
def test_the_density_of_uniform_times(schedule):
    """By its own formula, by the derivative of the path, and by its integral; nowhere below the uniform share."""
    log_snr = log_snrs(schedule, 20_001)
    density = schedule.time_density(log_snr).detach()
    torch.testing.assert_close(density, Schedule.time_density(schedule, log_snr), rtol=1e-9, atol=0)
    assert float(torch.trapezoid(density, log_snr)) == pytest.approx(1.0, abs=2e-4)
    assert float(density.min()) >= UNIFORM / 24.0


def test_only_the_density_carries_a_gradient_to_the_weights():
    schedule = with_weights(0.1, -0.2, 0.3)
    t, log_snr = f64([0.2, 0.7]), f64([3.0, -4.0])
    for value in (*schedule(t), *schedule.derivatives(t), schedule.log_snr(t), schedule.inverse_log_snr(log_snr)):
        assert not value.requires_grad
    schedule.time_density(log_snr).log().sum().backward()
    assert float(schedule.log_density.grad.abs().min()) > 0
    assert float(schedule.log_density.grad.sum()) == pytest.approx(0.0, abs=1e-6), "a density keeps its integral"


def test_the_path_follows_its_weights():
    """Tables are kept between calls: they must not outlive the weights, however these are changed."""
    schedule, t = with_weights(0.1, -0.2, 0.3), f64(0.4)
    seen = [float(schedule.log_snr(t))]

    def check():
        seen.append(float(schedule.log_snr(t)))
        assert seen[-1] == float(with_weights(*schedule.log_density.tolist()).log_snr(t))
        assert len(set(seen)) == len(seen)

    optimizer = torch.optim.AdamW(schedule.parameters(), lr=0.1, foreach=True)
    schedule.time_density(f64([3.0])).sum().backward()
    optimizer.step()
    check()
    schedule.load_state_dict(learned_state := {"log_density": torch.tensor([0.0, 0.5, -0.5])})
    check()
    with torch.inference_mode():
        schedule.log_density.mul_(0.5)
        check()
    schedule.load_state_dict({"log_density": 2 * learned_state["log_density"]}, assign=True)
    check()
    other = copy.deepcopy(schedule)
    with torch.no_grad():
        other.log_density.add_(torch.tensor([0.3, 0.0, 0.0]))
    assert float(other.log_snr(t)) != float(schedule.log_snr(t)) == seen[-1]


def test_a_path_first_walked_in_inference_mode_can_be_differentiated_in_time():
    schedule = with_weights(0.1, -0.2, 0.3)
    with torch.inference_mode():
        schedule.log_snr(f64(0.5))
    t = f64(0.5).requires_grad_()
    schedule.log_snr(t).backward()
    torch.testing.assert_close(t.grad, schedule.d_log_snr(t.detach()))


def test_its_name_tells_its_ends_and_its_weights():
    one, same, other = with_weights(0.1, 0.2), with_weights(0.1, 0.2), with_weights(0.1, 0.3)
    assert repr(one) == repr(same) != repr(other)
    assert repr(one).startswith("Learned(log_snr_max=14.0, log_snr_min=-10.0, segments=1, weights=")
    assert repr(one) == repr(one.double()), "of the numbers, not of the dtype they are kept in"


@pytest.mark.parametrize(("arguments", "key"), [({"log_snr_min": 20.0}, "log_snr_max"), ({"segments": 0}, "segments")])
def test_numbers_that_make_no_path_are_refused(arguments, key):
    with pytest.raises(UserError, match=key):
        Learned(**arguments)
