"""The contract of `sample`: what it draws, counts, calls back and refuses."""

import math

import pytest
import torch
from laws import F64, FIXED_STEP, NOISELESS_SDE, SCHEDULES, STOCHASTIC, f64, mixture, name, seeded

from diffusion import samplers
from diffusion.commands.sample.arguments import parse_sample_arguments
from diffusion.denoisers import Clipped, NetworkDenoiser, Retimed, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import UserError
from diffusion.networks import MLP
from diffusion.numerics.random import Noise
from diffusion.samplers import DDIM, ODE, Ancestral, DPMSolverSDE, EulerMaruyama, ExponentialSDE, LinearSampler
from diffusion.schedules import EDM, VP, Rectified, time_grid

EVERY = [*FIXED_STEP, *NOISELESS_SDE, *STOCHASTIC, ODE()]
every_sampler = pytest.mark.parametrize("sampler", EVERY, ids=name)
GRID = time_grid(VP(), 10)


def _noise(step):
    return seeded(5, 2, seed=100 + step)


def _never(step):
    raise AssertionError("noise was drawn")


@every_sampler
def test_noise_is_drawn_only_where_it_is_used(sampler):
    if sampler.is_stochastic:
        with pytest.raises(AssertionError, match="noise was drawn"):
            sampler.sample(mixture(VP()), seeded(5, 2), GRID, _never)
        with pytest.raises(UserError, match="noise"):
            sampler.sample(mixture(VP()), seeded(5, 2), GRID)
    else:
        with_noise = sampler.sample(mixture(VP()), seeded(5, 2), GRID, _never)
        assert torch.equal(with_noise, sampler.sample(mixture(VP()), seeded(5, 2), GRID))


@every_sampler
def test_each_step_draws_its_own_noise_once(sampler):
    drawn = []

    def noise(step):
        drawn.append(step)
        return _noise(step)

    sampler.sample(mixture(VP()), seeded(5, 2), GRID, noise)
    # none in the last step, to clean data; DPM++ SDE draws for each half of a step
    draws = 2 if isinstance(sampler, DPMSolverSDE) else 1
    assert drawn == (list(range(9 * draws)) if sampler.is_stochastic else [])


@every_sampler
def test_the_state_keeps_its_dtype_and_its_start(sampler):
    x_1 = seeded(5, 2)
    before = x_1.clone()
    for dtype in (torch.float32, F64):
        noise = Noise(0, torch.arange(5), (2,), dtype)
        x = sampler.sample(mixture(VP()), x_1.to(dtype), GRID, noise)
        assert x.dtype == dtype
        assert x.shape == (5, 2)
    assert torch.equal(x_1, before)
    single = sampler.sample(mixture(VP()), x_1.float(), GRID, lambda step: _noise(step).float())
    double = sampler.sample(mixture(VP()), x_1, GRID, _noise)
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=2e-3)


@every_sampler
def test_no_state_between_calls(sampler):
    model, x_1 = mixture(VP()), seeded(5, 2)
    first = sampler.sample(model, x_1, GRID, _noise)
    sampler.sample(model, 3 * x_1, GRID[3:], _noise)
    assert torch.equal(sampler.sample(model, x_1, GRID, _noise), first)


@every_sampler
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4)], ids=str)
def test_any_shape_of_data(sampler, shape):
    """The shape is no matter: each number is drawn as in a row of as many."""

    def drawn(shape):
        noise = Noise(0, torch.arange(3), shape)
        model = exact.Gaussian(torch.zeros(shape), torch.ones(shape), EDM())
        return sampler.sample(model, 80 * noise.initial(), time_grid(EDM(), 5), noise)

    x = drawn(shape)
    assert x.shape == (3, *shape)
    torch.testing.assert_close(x.reshape(3, -1), drawn((math.prod(shape),)))


@every_sampler
def test_the_shortest_grids(sampler):
    """One interval is one question: E[x | x_1]."""
    for schedule in SCHEDULES:
        model, x_1 = mixture(schedule), schedule.prior_std * seeded(5, 2)
        one, two = (sampler.sample(model, x_1, time_grid(schedule, steps), _noise) for steps in (1, 2))
        torch.testing.assert_close(one, model(x_1, f64(schedule.t_max)))
        assert torch.isfinite(two).all()


@every_sampler
def test_the_callback_sees_every_step_and_changes_nothing(sampler):
    seen = []

    def callback(step, time, x, x_hat):
        seen.append((step, time, x.clone(), x, x_hat))

    model, x_1 = mixture(VP()), seeded(5, 2)
    x = sampler.sample(model, x_1, GRID, _noise, callback=callback)
    assert [step for step, *_ in seen] == list(range(10))
    assert [time for _, time, *_ in seen] == GRID[1:].tolist()
    assert torch.equal(seen[-1][2], x)
    for _, _, then, now, _ in seen:
        assert torch.equal(then, now)  # a state is not overwritten by later steps
    tolerance = 1e-2 if sampler.is_adaptive else 0.0
    torch.testing.assert_close(x, sampler.sample(model, x_1, GRID, _noise), rtol=0, atol=tolerance)
    # the states are those at which a shorter walk ends
    short = sampler.sample(model, x_1, GRID[:5], _noise)
    torch.testing.assert_close(seen[3][2], short, rtol=1e-12 + tolerance, atol=1e-12 + tolerance)
    if isinstance(sampler, LinearSampler):
        assert torch.equal(seen[0][4], model(x_1, GRID[0]))


@pytest.mark.parametrize("sampler", [*FIXED_STEP, *STOCHASTIC], ids=name)
def test_evaluations_of_fixed_steps(sampler):
    """What a sampler declares is what it costs, the last evaluation being x_hat; wrappers add none."""
    inner = mixture(VP())
    for model in (inner, Clipped(Retimed(inner, Rectified()), -9.0, 9.0)):
        with count_evaluations(model) as count:
            sampler.sample(model, seeded(5, 2), time_grid(model.schedule, 10), _noise)
        assert count.rows == 5 * (9 * sampler.evaluations_per_step + sampler.starting_evaluations + 1)


@pytest.mark.parametrize(
    "grid",
    [f64([0.5]), f64([0.5, 0.5]), f64([0.1, 0.9]), f64([0.9, 0.1, 0.2]), f64([0.9, float("nan")]), f64([])],
    ids=str,
)
@pytest.mark.parametrize("sampler", [DDIM(), ODE()], ids=name)
def test_grids_that_do_not_decrease_are_refused(sampler, grid):
    with pytest.raises(UserError, match="grid"):
        sampler.sample(mixture(VP()), seeded(5, 2), grid)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DDIM(1.5), "eta: found 1.5"),
        (lambda: DDIM(-0.1), "eta"),
        (lambda: ExponentialSDE(-1.0), "eta: found -1.0"),
        (lambda: EulerMaruyama(float("nan")), "eta"),
        (lambda: Ancestral("uper"), "Did you mean 'upper'"),
        (lambda: ODE("dopri"), "Did you mean 'dopri"),
        (lambda: ODE("fehlberg2"), "method"),
        (lambda: ODE(tolerance=0.0), "tolerance"),
        (lambda: samplers.build("dddim"), "Did you mean 'ddim'"),
        (lambda: samplers.build("ancestral", eta=0.5), "eta: sampler 'ancestral' does not take it"),
    ],
)
def test_settings_that_make_no_sampler_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_the_command_line_lists_every_sampler(capsys):
    with pytest.raises(SystemExit):
        parse_sample_arguments(["--help"])
    said = "".join(capsys.readouterr().out.split())
    assert ",".join(samplers.names()) in said


def test_a_sampler_by_its_name():
    assert samplers.build("ddim", eta=0.3) == DDIM(0.3)
    assert samplers.build("ode", method="rk4", tolerance=None) == ODE("rk4")
    assert samplers.build("sde", eta=None) == ExponentialSDE()


@pytest.mark.parametrize("grid", [f64([1.5, 0.5, 0.0]), f64([1.0, 0.5, -0.1])], ids=["above", "below"])
def test_times_outside_the_path_are_refused(grid):
    with pytest.raises(UserError, match="t_max"):
        DDIM().sample(mixture(VP()), seeded(5, 2), grid)


@every_sampler
def test_a_grid_from_1_starts_at_the_end_of_a_path_that_is_singular_there(sampler):
    schedule = Rectified()
    x = [
        sampler.sample(mixture(schedule), seeded(5, 2), f64([start, 0.8, 0.5, 0.2, 0.0]), _noise)
        for start in (1.0, schedule.t_max)
    ]
    assert torch.equal(*x)


@pytest.mark.parametrize("which", ["ddim", "sde", "sa-solver", "dpm-solver++sde", "predictor-corrector", "unipc"])
def test_what_is_remembered_of_a_grid_serves_with_gradients_too(which):
    """The first walk of a grid may be in inference mode, whose tensors autograd refuses."""
    schedule, sampler = VP(log_snr_max=13.0), samplers.build(which)  # a schedule that no other test has
    denoiser = NetworkDenoiser(MLP(2, width=8), schedule, "v", (2,))
    grid = time_grid(schedule, 4)
    noise = Noise(0, torch.arange(3), (2,))
    along = sampler.noise_along(noise, schedule, grid) if sampler.is_stochastic else None
    with torch.inference_mode():
        sampler.sample(denoiser, torch.ones(3, 2), grid, along)
    x = torch.ones(3, 2, requires_grad=True)
    sampler.sample(denoiser, x, grid, along).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
