"""The SDEs of a path against Fokker-Planck: the density of an exact mixture, every term by autograd in float64."""

import pytest
import torch
from laws import F64, SCHEDULES, f64, log_snrs, mixture, name, seeded

from diffusion.denoisers.exact import GaussianMixture
from diffusion.samplers.sde import sde

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def _line(schedule):
    return GaussianMixture(f64([[-1.0], [0.6]]), f64([0.3, 0.5]), schedule, f64([0.4, 0.6]))


def _points(model):
    """States where there is density, at times in the middle of the path, where no term vanishes."""
    schedule = model.schedule
    log_snr = log_snrs(schedule, 40, -3.0, 4.0)[1:-1] + 1e-6  # off the levels of the discrete schedule
    t = schedule.inverse_log_snr(log_snr)
    alpha, sigma = (value[:, None] for value in schedule(t))
    x = seeded(len(t), *model.shape)
    return alpha * x + sigma * seeded(*x.shape, seed=1), t


def _divergence(field, x):
    """div of field(x), both (B, D), rows independent."""
    total = torch.zeros(len(x), dtype=F64)
    for i in range(x.shape[1]):
        total = total + torch.autograd.grad(field(x)[:, i].sum(), x, create_graph=True)[0][:, i]
    return total


def _terms(model):
    x_t, t = _points(model)
    x, t = x_t.requires_grad_(), t.requires_grad_()

    def density(x, t):
        return model.log_prob_at(x, t).exp()

    def gradient(x):
        return torch.autograd.grad(density(x, t).sum(), x, create_graph=True)[0]

    dp_dt = torch.autograd.grad(density(x, t).sum(), t)[0]
    return x, t, density, dp_dt, _divergence(gradient, x)


def _assert_balanced(dp_dt, right):
    torch.testing.assert_close(dp_dt, right, rtol=1e-6, atol=1e-7 * float(dp_dt.abs().max()))
    assert float(dp_dt.abs().max()) > 1e-3  # there is something to balance


@every_schedule
@pytest.mark.parametrize("build", [_line, mixture], ids=["1-D", "2-D"])
def test_the_forward_sde_has_the_densities_of_the_path(schedule, build):
    """dp/dt = -div(f x p) + g^2/2 lap p"""
    x, t, density, dp_dt, laplacian = _terms(build(schedule))
    f, g2 = sde.drift(schedule, t), sde.diffusion_squared(schedule, t)
    advected = _divergence(lambda x: f[:, None] * x * density(x, t)[:, None], x)
    _assert_balanced(dp_dt, -advected + 0.5 * g2 * laplacian)


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_every_eta_of_the_reverse_process_has_the_densities_of_the_path(schedule, eta):
    """Run from 1 to 0 with drift b and noise eta g: dp/dt = -div(b p) - eta^2 g^2/2 lap p"""
    model = mixture(schedule)
    x, t, density, dp_dt, laplacian = _terms(model)
    g2 = sde.diffusion_squared(schedule, t)
    advected = _divergence(lambda x: sde.reverse_drift(model, x, t, eta) * density(x, t)[:, None], x)
    _assert_balanced(dp_dt, -advected - 0.5 * eta**2 * g2 * laplacian)


@every_schedule
def test_the_probability_flow_is_the_denoisers_velocity(schedule):
    model = mixture(schedule)
    x_t, t = _points(model)
    torch.testing.assert_close(sde.probability_flow(model, x_t, t), model.velocity(x_t, t), rtol=1e-8, atol=1e-8)
    assert sde.probability_flow(model, x_t.float(), t).dtype == torch.float32
    one = sde.reverse_drift(model, x_t, t[3], 1.3)
    torch.testing.assert_close(one, sde.reverse_drift(model, x_t, t[3].expand(len(t)), 1.3))
