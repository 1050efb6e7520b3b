"""Conversions between predictions: exact algebra in both directions, on every path."""

import itertools

import pytest
import torch
from laws import F64, SCHEDULES, autograd_derivative, f64, name, seeded, times
from torch import nn

from diffusion.config import PREDICTIONS
from diffusion.denoisers import NetworkDenoiser, predictions
from diffusion.denoisers.preconditioning import c_in, c_noise, edm_to_x, x_to_edm
from diffusion.denoisers.predictions import PathPoint
from diffusion.schedules import EDM, VP, Rectified

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def _truth(schedule):
    """Every prediction, from x and eps by its definition, with the path's derivatives by autograd."""
    t = times(schedule, 9)[1:-1] * (1 - 1e-7)
    x, eps = seeded(7, 2, 3), seeded(7, 2, 3, seed=1)
    alpha, sigma = (value[:, None, None] for value in schedule(t))
    d_alpha = autograd_derivative(lambda t: schedule(t)[0], t)[:, None, None]
    d_sigma = autograd_derivative(lambda t: schedule(t)[1], t)[:, None, None]
    values = {
        "x": x,
        "eps": eps,
        "score": -eps / sigma,
        "v": alpha * eps - sigma * x,
        "velocity": d_alpha * x + d_sigma * eps,
    }
    return t, alpha * x + sigma * eps, values


@every_schedule
@pytest.mark.parametrize(("source", "target"), list(itertools.product(predictions.NAMES, repeat=2)))
def test_any_prediction_gives_any_other(schedule, source, target):
    t, x_t, values = _truth(schedule)
    at = PathPoint(schedule, t, x_t)
    converted = predictions.convert(values[source], source, target, x_t, at)
    torch.testing.assert_close(converted, values[target], rtol=1e-8, atol=1e-8)


@every_schedule
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_networks_output_and_x_are_inverse(schedule, kind):
    model = NetworkDenoiser(nn.Identity(), schedule, kind, (2, 3), sigma_data=0.6)
    t, x_t, values = _truth(schedule)
    at = PathPoint(schedule, t, x_t)
    raw = model.x_to_raw(values["x"], x_t, at)
    torch.testing.assert_close(model.raw_to_x(raw, x_t, at), values["x"], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_is_karras_et_al_table_1(sigma_data):
    """alpha = 1: D = c_skip x + c_out F(c_in x; c_noise) with the paper's four coefficients."""
    t = times(EDM(), 9)
    sigma = EDM()(t)[1][:, None]
    x_t, raw = seeded(9, 4), seeded(9, 4, seed=1)
    at = PathPoint(EDM(), t, x_t)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / torch.sqrt(sigma_data**2 + sigma**2)
    torch.testing.assert_close(edm_to_x(raw, x_t, at, sigma_data), c_skip * x_t + c_out * raw, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(c_in(at, sigma_data), 1 / torch.sqrt(sigma**2 + sigma_data**2))
    # the one that differs, as the docstring says: the network hears lambda / 4 on every path
    torch.testing.assert_close(c_noise(EDM().log_snr(t)), -2 * torch.log(sigma[:, 0]) / 4)


@every_schedule
def test_edm_keeps_unit_variance_around_the_network(schedule):
    """Sec. 5 of the paper, on any path: input and target of unit variance for data of deviation sigma_data."""
    sigma_data = 0.5
    x, eps = sigma_data * seeded(20_000, 1), seeded(20_000, 1, seed=1)
    for t in times(schedule, 5):
        alpha, sigma = schedule(t)
        x_t = alpha * x + sigma * eps
        at = PathPoint(schedule, t, x_t)
        assert float((c_in(at, sigma_data) * x_t).std()) == pytest.approx(1.0, abs=0.03)
        target = x_to_edm(x, x_t, at, sigma_data)
        assert float(target.std()) == pytest.approx(1.0, abs=0.03)
        # the network's error reaches x_hat least: input and target are uncorrelated
        assert abs(float((target * x_t).mean() / x_t.std())) < 0.03


def test_c_noise_is_a_quarter_of_the_log_snr_within_its_limits():
    torch.testing.assert_close(c_noise(f64([-30.0, -4.0, 0.0, 7.0, 99.0])), f64([-5.0, -1.0, 0.0, 1.75, 5.0]))


@every_schedule
def test_a_time_may_be_one_number(schedule):
    t, x_t, values = _truth(schedule)
    one = PathPoint(schedule, t[3], x_t)
    many = PathPoint(schedule, t[3].expand(7), x_t)
    for kind in predictions.NAMES:
        torch.testing.assert_close(
            predictions.convert(values["x"], "x", kind, x_t, one),
            predictions.convert(values["x"], "x", kind, x_t, many),
        )


def test_coefficients_take_the_dtype_of_the_data():
    x = seeded(2, 3).float()
    at = PathPoint(Rectified(), f64([0.3, 0.4]), x)
    assert {at.alpha.dtype, at.sigma.dtype, at.d_alpha.dtype, at.d_sigma.dtype} == {torch.float32}
    assert PathPoint(VP(), torch.tensor([0.3, 0.4]), seeded(2, 3)).alpha.dtype == F64
    one = PathPoint(Rectified(), f64(0.3), x)
    assert (one.alpha, one.sigma, one.d_alpha, one.d_sigma) == (0.7, 0.3, -1.0, 1.0), "one time: plain numbers"
    assert predictions.x_to_eps(x, x, one).dtype == torch.float32
