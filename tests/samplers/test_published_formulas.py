"""The fast samplers against the papers' own formulas, written out step by step, on uneven grids of a mixture."""

from itertools import pairwise

import pytest
import torch
from laws import FOUR_SCHEDULES, SCHEDULES, f64, gaussian, gaussian_law, mixture, name, seeded

from diffusion.errors import UserError
from diffusion.samplers import (
    DEIS,
    Adams,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    Heun,
    UniPC,
    build,
)
from diffusion.schedules import EDM, VP, Rectified, time_grid

# all but the one that ends at log-SNR -0.5
every_schedule = pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != VP(1.0, 1.0)], ids=name)
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def _noise(step):
    return seeded(5, 2, seed=100 + step)


def _path(schedule):
    """Times whose steps in log-SNR differ by up to 3 times, h = log(alpha / sigma) there, alpha, sigma, and a start."""
    log_snr = f64([-6.0, -5.0, -3.5, -3.0, -1.0, 0.5, 1.0, 3.0, 4.5, 5.0])
    t = schedule.inverse_log_snr(log_snr)
    alpha, sigma = schedule(t)
    return t, torch.log(alpha / sigma), alpha, sigma, torch.hypot(alpha[0], sigma[0]) * seeded(5, 2)


def _run(sampler, schedule):
    t, *_, x = _path(schedule)
    return sampler.sample(mixture(schedule), x, t, _noise)


@every_schedule
def test_dpm_solver_pp_2m_is_algorithm_2(schedule):
    t, h, alpha, sigma, x = _path(schedule)
    model, previous = mixture(schedule), None
    for i in range(1, len(t)):
        q, step = model(x, t[i - 1]), h[i] - h[i - 1]
        d = q
        if previous is not None:
            r = (h[i - 1] - h[i - 2]) / step
            d = (1 + 1 / (2 * r)) * q - 1 / (2 * r) * previous
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-step) * d
        previous = q
    torch.testing.assert_close(_run(DPMSolverPP2M(), schedule), x, **CLOSE)


@every_schedule
def test_dpm_solver_pp_3m_has_the_phi_functions_of_its_docstring(schedule):
    t, h, alpha, sigma, x = _path(schedule)
    model = mixture(schedule)
    # the first step by the midpoint, whose output is the second of the three that the second step uses
    m0, h_m = model(x, t[0]), 0.5 * (h[0] + h[1])
    t_m = schedule.inverse_log_snr(2 * h_m)
    alpha_m, sigma_m = schedule(t_m)
    inner = model(sigma_m / sigma[0] * x - alpha_m * torch.expm1(h[0] - h_m) * m0, t_m)
    step = h[1] - h[0]
    phi_1 = torch.expm1(-step)
    phi_2 = phi_1 / step + 1
    x = sigma[1] / sigma[0] * x - alpha[1] * phi_1 * m0 + alpha[1] * phi_2 * (inner - m0) * 2
    nodes, outputs = [h_m, h[0]], [inner, m0]  # newest first
    for i in range(2, len(t)):
        nodes, outputs = [h[i - 1], *nodes], [model(x, t[i - 1]), *outputs]
        step = h[i] - h[i - 1]
        r_0, r_1 = (nodes[0] - nodes[1]) / step, (nodes[1] - nodes[2]) / step
        d_0, d_1 = (outputs[0] - outputs[1]) / r_0, (outputs[1] - outputs[2]) / r_1
        first, second = d_0 + r_0 / (r_0 + r_1) * (d_0 - d_1), (d_0 - d_1) / (r_0 + r_1)
        phi_1 = torch.expm1(-step)
        phi_2 = phi_1 / step + 1
        phi_3 = phi_2 / step - 0.5
        x = sigma[i] / sigma[i - 1] * x
        x = x + alpha[i] * (-phi_1 * outputs[0] + phi_2 * first - 2 * phi_3 * second)
    torch.testing.assert_close(_run(DPMSolverPP3M(), schedule), x, **CLOSE)


@every_schedule
def test_dpm_solver_2_and_3_are_algorithms_1_and_2(schedule):
    for order, sampler in ((2, DPMSolver2()), (3, DPMSolver3())):
        t, h, alpha, sigma, x = _path(schedule)
        model = mixture(schedule)

        def at(h, schedule=schedule):
            time = schedule.inverse_log_snr(2 * h)
            return time, *schedule(time)

        for i in range(1, len(t)):
            step, eps = h[i] - h[i - 1], model.eps(x, t[i - 1])
            if order == 2:
                t_1, alpha_1, sigma_1 = at(h[i - 1] + step / 2)
                u = alpha_1 / alpha[i - 1] * x - sigma_1 * torch.expm1(step / 2) * eps
                x = alpha[i] / alpha[i - 1] * x - sigma[i] * torch.expm1(step) * model.eps(u, t_1)
                continue
            r_1, r_2 = 1 / 3, 2 / 3
            t_1, alpha_1, sigma_1 = at(h[i - 1] + r_1 * step)
            t_2, alpha_2, sigma_2 = at(h[i - 1] + r_2 * step)
            u_1 = alpha_1 / alpha[i - 1] * x - sigma_1 * torch.expm1(r_1 * step) * eps
            d_1 = model.eps(u_1, t_1) - eps
            u_2 = alpha_2 / alpha[i - 1] * x - sigma_2 * torch.expm1(r_2 * step) * eps
            u_2 = u_2 - sigma_2 * r_2 / r_1 * (torch.expm1(r_2 * step) / (r_2 * step) - 1) * d_1
            d_2 = model.eps(u_2, t_2) - eps
            x = alpha[i] / alpha[i - 1] * x - sigma[i] * torch.expm1(step) * eps
            x = x - sigma[i] / r_2 * (torch.expm1(step) / step - 1) * d_2
        torch.testing.assert_close(_run(sampler, schedule), x, **CLOSE)


def _unipc_weights(r, step, b):
    """a of R_p(step) a = phi_p(step) / B (eq. 5 and 8 in data variables), for the ratios r of UniP or UniC."""
    k = len(r)
    g = [-torch.expm1(-step)]  # g_n = integral of e^(u - step) u^(n-1) du / (n-1)!, from 0 to step
    for n in range(1, k + 1):
        g.append(step**n / torch.tensor(n, dtype=step.dtype).add(1).lgamma().exp() - g[-1])
    # sum_m a_m r_m^(n-1) = n! g_(n+1) / (step^n B), which makes every polynomial of degree k exact
    rows = torch.stack([torch.stack([ratio ** (n - 1) for ratio in r]) for n in range(1, k + 1)])
    right = torch.stack(
        [g[n] * torch.tensor(n + 1.0, dtype=step.dtype).lgamma().exp() / step**n for n in range(1, k + 1)]
    )
    return torch.linalg.solve(rows, right / b)


@pytest.mark.parametrize("b", [lambda step: step, torch.expm1], ids=["B1", "B2"])
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=name)
def test_unipc_is_algorithms_1_and_2_for_any_b(schedule, p, b):
    """Predict, ask, correct, go on; the weights from the paper's linear system, in which B(h) cancels."""
    t, h, alpha, sigma, x = _path(schedule)
    model = mixture(schedule)
    nodes, outputs, corrected = [h[0]], [model(x, t[0])], x
    for i in range(1, len(t)):
        step, base = h[i] - h[i - 1], corrected
        linear = sigma[i] / sigma[i - 1] * base - alpha[i] * torch.expm1(-step) * outputs[0]
        r = [(node - h[i - 1]) / step for node in nodes[1:p]]
        d = [(output - outputs[0]) for output in outputs[1:p]]
        x = linear
        if r:
            for a, ratio, difference in zip(_unipc_weights(r, step, b(step)), r, d, strict=True):
                x = x + alpha[i] * b(step) * a * difference / ratio
        if i == len(t) - 1:
            break
        new = model(x, t[i])
        r, d = [*r, torch.ones_like(step)], [*d, new - outputs[0]]
        corrected = linear
        for a, ratio, difference in zip(_unipc_weights(r, step, b(step)), r, d, strict=True):
            corrected = corrected + alpha[i] * b(step) * a * difference / ratio
        nodes, outputs = [h[i], *nodes], [new, *outputs]
    torch.testing.assert_close(_run(UniPC(p), schedule), x, **CLOSE)


@every_schedule
def test_deis_2_is_the_line_through_eps_in_log_rho(schedule):
    """The integral of its Lagrange polynomials over rho in closed form: of log rho it is rho (log rho - 1)."""
    t, _, alpha, sigma, x = _path(schedule)
    model, rho, previous = mixture(schedule), sigma / alpha, None
    for i in range(1, len(t)):
        eps, delta = model.eps(x, t[i - 1]), rho[i] - rho[i - 1]
        moved = delta * eps
        if previous is not None:
            log = rho[i] * (rho[i].log() - 1) - rho[i - 1] * (rho[i - 1].log() - 1) - rho[i - 1].log() * delta
            moved = moved + log * (eps - previous) / (rho[i - 1] / rho[i - 2]).log()
        x = alpha[i] * (x / alpha[i - 1] + moved)
        previous = eps
    torch.testing.assert_close(_run(DEIS(2), schedule), x, **CLOSE)


@every_schedule
def test_heun_with_churn_is_edms_algorithm_2(schedule):
    """In x / alpha and sigma / alpha, with the same noise; the level stays within the path."""
    t, h, alpha, _, x = _path(schedule)
    sampler = Heun(s_churn=3.0, s_min=0.2, s_max=4.0, s_noise=1.007)
    model, rho, y = mixture(schedule), torch.exp(-h), x / alpha[0]
    churned = 0

    def slope_at(y, rho):
        time = schedule.inverse_log_snr(-2 * rho.log())
        alpha = schedule(time)[0]
        return (y - model(alpha * y, time)) / rho

    for i, (rho_t, rho_s) in enumerate(pairwise(rho)):
        gamma = min(3.0 / len(t), 2**0.5 - 1) if 0.2 <= rho_t <= 4.0 else 0.0
        churned += gamma > 0
        rho_hat = (1 + gamma) * rho_t
        y = y + torch.sqrt(rho_hat**2 - rho_t**2) * 1.007 * _noise(i)
        d = slope_at(y, rho_hat)
        ahead = y + (rho_s - rho_hat) * d
        y = y + (rho_s - rho_hat) * 0.5 * (d + slope_at(ahead, rho_s))
    assert 0 < churned < len(t) - 1
    torch.testing.assert_close(_run(sampler, schedule), alpha[-1] * y, **CLOSE)


@pytest.mark.parametrize("sampler", [Euler(s_churn=20.0, s_min=0.05, s_max=50.0), Heun(20.0, 0.05, 50.0)], ids=name)
def test_churn_draws_only_where_it_adds_noise_and_keeps_the_law(sampler):
    """The law of Gaussian data, by propagation of what each draw adds (not by Monte Carlo)."""
    assert sampler.is_stochastic
    drawn = []

    def listen(step):
        drawn.append(step)
        return torch.zeros(1, 1, dtype=torch.float64)

    model, grid = gaussian(EDM()), time_grid(EDM(), 200)
    sampler.sample(model, f64([[0.0]]), grid, listen)
    rho = EDM()(grid[:-2])[1]
    assert drawn == [i for i, r in enumerate(rho.tolist()) if 0.05 <= r <= 50.0]
    x_1 = torch.zeros(len(drawn) + 2, 1, dtype=torch.float64)
    x_1[1] = 1.0

    def noise(step):
        z = torch.zeros_like(x_1)
        z[2 + drawn.index(step)] = 1.0
        return z

    x = sampler.sample(model, x_1, grid, noise)[:, 0]
    gains = x[1:] - x[0]
    mean, variance = gaussian_law(EDM(), grid[0])
    spread = torch.sqrt(gains[0] ** 2 * variance + gains[1:].square().sum())
    assert float(x[0] + gains[0] * mean) == pytest.approx(0.7, abs=2e-2)
    assert float(spread) == pytest.approx(0.4, rel=0.1 if sampler.order == 1 else 1e-2)


def test_churn_does_not_leave_the_path():
    """A step from the noisy end starts there; without noise nothing is asked for."""
    drawn = []

    def noise(step):
        drawn.append(step)
        return _noise(step)

    for schedule in (VP(), Rectified()):
        drawn.clear()
        Heun(s_churn=4.0).sample(mixture(schedule), seeded(5, 2), time_grid(schedule, 10), noise)
        assert drawn == list(range(1, 9))
    assert not Heun().is_stochastic


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unipc", {"predictor": 4}, "predictor: found 4; accepted: 1, 2, 3"),
        ("adams", {"space": "velocty"}, "Did you mean 'velocity'"),
        ("adams", {"data_std": 0.0}, "data_std: found 0.0"),
        ("deis", {"predictor": 0}, "predictor: found 0"),
        ("heun", {"s_churn": -1.0}, "s_churn: found -1.0"),
        ("heun", {"s_min": 2.0, "s_max": 1.0}, "s_min, s_max"),
        ("dpm-solver-2", {"eta": 0.5}, "eta: sampler 'dpm-solver-2' does not take it; it takes: steps"),
    ],
)
def test_settings_that_make_no_sampler_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, **options)
    assert isinstance(build("adams", predictor=3, space="data"), Adams)
