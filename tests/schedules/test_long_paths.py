"""Paths whose ends lie where float32 tells nothing apart: trained, drawn and measured right, or refused before."""

import math

import pytest
import torch
from laws import MEAN, STD, gaussian, name

from diffusion import log_density, sample, samplers
from diffusion.denoisers import NetworkDenoiser, exact
from diffusion.errors import UserError
from diffusion.networks import MLP
from diffusion.objectives import Objective, draw_u, time_distribution, weighting
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Learned, Rectified, SubVP, time_grid
from diffusion.schedules.schedule import NOISE_END, log_snr_ends

LONG = [
    DDPM(4000),
    DDPM(beta_end=0.1),
    DDPM(100_000),
    DDPM(beta_end=0.999999),
    VP(beta_max=200.0),
    VP(beta_max=1e5),
    SubVP(beta_max=1e4),
    Cosine(log_snr_min=-50.0),
    Rectified(log_snr_min=-1000.0, log_snr_max=29.0),
    VE(sigma_max=1e12),
    EDM(sigma_max=1e20),
    Learned(log_snr_min=-80.0),
]
every_path = pytest.mark.parametrize("schedule", LONG, ids=name)
SINGLE = {"mean": torch.tensor([MEAN]), "std": torch.tensor([STD])}


@every_path
def test_the_path_starts_where_float32_sees_the_data(schedule):
    low, _ = log_snr_ends(schedule)
    assert low == pytest.approx(NOISE_END, abs=1e-6)
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    for value in (*schedule(ends), *schedule.derivatives(ends), schedule.d_log_snr(ends)):
        assert torch.isfinite(value).all()
    grid = time_grid(schedule, 20)
    assert (grid.diff() < 0).all()
    assert float(grid[0]) == schedule.t_max


@pytest.mark.parametrize("third", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@every_path
def test_every_sampler_draws_in_float32(schedule, third):
    """The data's own law where the solver is accurate at so many steps, else finite numbers; a third, by turns."""
    for sampler in samplers.names()[(LONG.index(schedule) + third) % 3 :: 3]:
        dims = 8 if sampler == "adaptive-sde" else 1  # its steps are each row's own: as many numbers in fewer rows
        model = exact.Gaussian(torch.full((dims,), MEAN), torch.tensor(STD), schedule)
        x = sample(model, 400 // dims, sampler, steps=None if sampler in ("ode", "adaptive-sde") else 40)
        assert torch.isfinite(x).all(), sampler
        if sampler in ("ode", "adams", "unipc", "dpm-solver++2m", "adaptive-sde", "sde"):
            assert float(x.mean()) == pytest.approx(MEAN, abs=0.08), sampler
            assert float(x.std()) == pytest.approx(STD, rel=0.12), sampler


@every_path
def test_the_flow_is_measured(schedule):
    x = torch.tensor([[0.2], [0.9], [1.5]])
    found = log_density(exact.Gaussian(**SINGLE, schedule=schedule), x, tolerance=1e-6).log_prob
    noise2 = math.exp(-log_snr_ends(schedule)[1])
    widened = torch.distributions.Normal(MEAN, math.sqrt(STD**2 + noise2))
    torch.testing.assert_close(found, widened.log_prob(x.double())[:, 0], rtol=1e-4, atol=1e-4)


@every_path
@pytest.mark.parametrize("prediction", ["eps", "v", "x", "edm"])
def test_the_loss_and_its_gradient_are_finite(schedule, prediction):
    torch.manual_seed(0)
    network = MLP(1, width=8, depth=1)
    model = NetworkDenoiser(network, schedule, prediction, (1,))
    i = torch.arange(64)
    for loss in ("elbo",) if schedule.is_learned else ("elbo", "simple", "edm", "min-snr"):
        objective = Objective(weighting(loss, schedule), time_distribution("uniform"))
        x, eps = torch.randn(64, 1), torch.randn(64, 1)
        value = objective(model, x, draw_u(0, 0, i, 64, stratified=True), eps).weighted.mean()
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_the_state_at_the_start_is_the_flow_s_own():
    """Float32 follows float64 along the whole flow, from the noise on."""
    model = gaussian(DDPM(4000))
    x_1 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    double = sample(model, 9, "ode", noise=x_1, tolerance=1e-6)
    single = sample(model, 9, "ode", noise=x_1.float(), tolerance=1e-6)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: DDPM(1), "schedule.steps"),
        (lambda: DDPM(10**9), "schedule.steps"),
        (lambda: DDPM(beta_start=1e-300), "schedule.steps, beta_start"),
        (lambda: VP(beta_max=math.inf), "schedule.beta_max"),
        (lambda: VP(log_snr_max=90.0), "schedule.beta_min"),
        (lambda: VE(sigma_min=1e-30), "schedule.sigma_min"),
        (lambda: EDM(rho=0.1), "schedule.rho"),
        (lambda: EDM(rho=math.nan), "schedule.rho"),
        (lambda: Cosine(log_snr_max=100.0), "schedule.log_snr_min, log_snr_max"),
        (lambda: Cosine(log_snr_min=-50.0, log_snr_max=-40.0), "schedule.log_snr_min, log_snr_max"),
        (lambda: Learned(log_snr_min=-50.0, log_snr_max=-40.0), "schedule.log_snr_min, log_snr_max"),
        (lambda: weighting("elbo", Cosine(log_snr_max=40.0)), "schedule: the data end"),
    ],
)
def test_what_no_number_holds_is_refused(make, key):
    with pytest.raises(UserError, match=f"^{key}") as error:
        make()
    assert "\n" not in str(error.value)
