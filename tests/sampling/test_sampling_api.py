"""diffusion.sample: sample i is a function of (seed, i), every option means what it says, and closed forms are met."""

import laws
import numpy as np
import pytest
import torch
from tiny_configs import digits_config
from torch import Tensor

import diffusion
from diffusion import samplers
from diffusion.denoisers import Clipped, Denoiser, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import DiffusionModel
from diffusion.schedules import EDM, VP, Rectified, time_grid

STOCHASTIC = ["ancestral", "sde", "euler-maruyama"]
FACTS = DataFacts("digits", (1, 8, 8), 17, 10)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A class-conditional U-Net whose weights are not zero anywhere."""
    config = digits_config(tmp_path_factory.mktemp("runs"), "denoiser.conditional=true", "schedule.name=vp")
    torch.manual_seed(0)
    denoiser = build_denoiser(config, FACTS)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return DiffusionModel(denoiser, config, FACTS)


class ClassGaussians(Denoiser):
    """Data N(mean_k, std_k^2) for class k; the label K is "no label" and has a law of its own."""

    def __init__(self, means, stds, schedule):
        super().__init__()
        self.laws = [exact.Gaussian(laws.f64([m]), laws.f64([s]), schedule) for m, s in zip(means, stds, strict=True)]
        self.schedule = schedule
        self.shape = (1,)
        self.num_classes = len(means) - 1

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        cond = torch.full((len(x_t),), self.num_classes) if cond is None else cond
        answers = torch.stack([law(x_t, t) for law in self.laws])
        return answers[cond, torch.arange(len(x_t))]


@pytest.mark.parametrize("name", ["ddim", *STOCHASTIC])
def test_the_image_does_not_depend_on_its_batch_or_place(network, name):
    whole = diffusion.sample(network, 64, name, steps=3, seed=5)
    for size in (1, 7):
        n = 10 if size == 1 else 64
        assert torch.allclose(
            diffusion.sample(network, n, name, steps=3, seed=5, batch_size=size), whole[:n], atol=1e-4
        )
    later = diffusion.sample(network, 7, name, steps=3, seed=5, start=30)
    assert torch.allclose(later, whole[30:37], atol=1e-4)
    assert torch.equal(diffusion.sample(network, 64, name, steps=3, seed=5), whole), "equal batch shapes: equal bits"
    assert float((diffusion.sample(network, 64, name, steps=3, seed=6) - whole).abs().mean()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in samplers.names() if not samplers.build(name).is_adaptive])
def test_images_of_the_shipped_model_are_the_same_under_any_split(name):
    """Every sampler of fixed steps, within 1e-4; 6e-6 at most is found."""
    model = diffusion.load("pretrained:digits")
    whole = diffusion.sample(model, 24, name, steps=20, seed=5)
    for size in (1, 5, 16):
        n = 6 if size == 1 else 24
        parts = diffusion.sample(model, n, name, steps=20, seed=5, batch_size=size)
        assert float((parts - whole[:n]).abs().max()) < 1e-4, size


def test_samples_of_an_adaptive_solver_differ_by_no_more_than_its_tolerance():
    denoiser = laws.mixture(VP())
    whole = diffusion.sample(denoiser, 40, "ode", tolerance=1e-6, seed=5, dtype=torch.float64)
    for size in (1, 4):
        parts = diffusion.sample(denoiser, 8, "ode", tolerance=1e-6, seed=5, batch_size=size, dtype=torch.float64)
        assert torch.allclose(parts, whole[:8], atol=1e-3)


def test_the_noise_is_bit_equal_whatever_the_batch():
    """On an elementwise denoiser no rounding depends on the batch, so that the samples are equal to the bit."""
    denoiser = exact.Gaussian(torch.full((1, 3, 3), 0.2), torch.tensor(0.5), VP())
    for name in ["ddim", *STOCHASTIC]:
        whole = diffusion.sample(denoiser, 64, name, steps=4, seed=9)
        for size in (1, 7):
            assert torch.equal(diffusion.sample(denoiser, 64, name, steps=4, seed=9, batch_size=size), whole), name
        parts = [diffusion.sample(denoiser, 8, name, steps=4, seed=9, start=start) for start in (56, 0, 24)]
        assert torch.equal(torch.cat(parts), torch.cat((whole[56:], whole[:8], whole[24:32]))), name


def test_every_name_draws_the_law_of_a_gaussian():
    """At many steps each sampler's mean and deviation are the data's, but for chance and the bias of the steps."""
    for name in samplers.names():
        # a Langevin step's length goes by each sample's own score, whose norm says little in two dimensions; an
        # adaptive step is taken by 64 numbers at once
        n, dims = (48, 64) if name in ("predictor-corrector", "adaptive-sde") else (768, 2)
        noise = laws.seeded(n, dims).float()
        noise = (noise - noise.mean(0)) / noise.std(0)  # a flow then leaves nothing to chance
        denoiser = exact.Gaussian(torch.full((dims,), laws.MEAN), torch.tensor(laws.STD), VP())
        steps = 600 if name == "euler-maruyama" else 200
        options = {"tolerance": 0.02} if name == "adaptive-sde" else {}
        x = diffusion.sample(denoiser, n, name, steps=steps, batch_size=n, noise=noise, **options)
        assert x.shape == (n, dims)
        assert x.dtype == torch.float32
        x = x.reshape(-1, 2)
        chance = 4 / len(x) ** 0.5 if samplers.build(name).is_stochastic else 0.0
        assert float((x.mean(0) - laws.MEAN).abs().max()) < chance * laws.STD + 0.005, name
        assert float((x.std(0) / laws.STD - 1).abs().max()) < chance / 2**0.5 + 0.01, name


@pytest.mark.parametrize("schedule", [VP(), Rectified(), EDM()], ids=laws.name)
def test_the_ode_of_a_gaussian_is_its_affine_map(schedule):
    denoiser = laws.gaussian(schedule)
    grid = time_grid(schedule, 50, log_snr_end=float("inf"))
    x_1 = schedule.prior_std * laws.seeded(20, 1)
    x = diffusion.sample(denoiser, 20, noise=x_1, tolerance=1e-7)
    assert x.dtype == torch.float64, "of the starting noise"
    at_end = laws.probability_flow(schedule, x_1, grid[0], grid[-2])
    expected = denoiser(at_end, grid[-2])
    assert torch.allclose(x, expected, atol=1e-5)


def test_given_noise_takes_the_place_of_drawn(network):
    x_1 = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = diffusion.sample(network, 5, "ddim", steps=3, noise=x_1, seed=0)
    assert torch.equal(diffusion.sample(network, 5, "ddim", steps=3, noise=x_1, seed=1), first)
    parts = diffusion.sample(network, 5, "ddim", steps=3, noise=x_1, batch_size=2)
    assert torch.allclose(parts, first, atol=1e-4)
    with pytest.raises(UserError, match=r"noise: found shape \(5, 1, 8, 8\); must be \(4, 1, 8, 8\)"):
        diffusion.sample(network, 4, "ddim", noise=x_1)
    for model in (network, network.denoiser):
        with pytest.raises(UserError, match="x_1: is not known; the starting noise is given as noise="):
            diffusion.sample(model, 5, "ddim", x_1=x_1)


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=laws.name)
def test_the_starting_noise_has_the_deviation_of_the_path(schedule):
    """The first state that a callback sees on a grid whose first step is tiny is the starting noise."""
    seen = []
    grid = laws.f64([schedule.t_max, schedule.t_max * (1 - 1e-9), 0.0])
    diffusion.sample(
        exact.Gaussian(torch.zeros(1), 1.0, schedule), 4000, "ddim", grid=grid, batch_size=4000,
        callback=lambda step, t, x, x_hat: seen.append(x),
    )  # fmt: skip
    assert float(seen[0].std()) == pytest.approx(schedule.prior_std, rel=0.05)


def test_the_state_is_float64_on_request(network):
    x = diffusion.sample(network, 2, "ddim", steps=2, dtype=torch.float64)
    assert x.dtype == torch.float64
    assert torch.allclose(x.float(), diffusion.sample(network, 2, "ddim", steps=2), atol=1e-4)
    with pytest.raises(UserError, match="float32 or float64"):
        diffusion.sample(network, 2, dtype=torch.float16)


def test_a_grid_is_a_name_or_the_times_themselves(network):
    times = time_grid(network.denoiser.schedule, 4, "karras")
    by_name = diffusion.sample(network, 2, "ddim", steps=4, grid="karras")
    assert torch.equal(diffusion.sample(network, 2, "ddim", grid=times), by_name)
    assert not torch.equal(diffusion.sample(network, 2, "ddim", steps=4), by_name)
    with pytest.raises(UserError, match="Did you mean 'karras'"):
        diffusion.sample(network, 2, "ddim", steps=4, grid="karas")
    for options in ({"sampler": "ddim", "steps": 7}, {"sampler": diffusion.samplers.DDIM(steps=7)}):
        with pytest.raises(UserError, match="steps: found 7; the grid given has 4; leave it out"):
            diffusion.sample(network, 2, grid=times, **options)


def test_labels_are_one_or_one_a_sample(network):
    each = diffusion.sample(network, 3, "ddim", steps=2, label=[4, 0, 9])
    for i, label in enumerate([4, 0, 9]):
        alone = diffusion.sample(network, 3, "ddim", steps=2, label=label)
        assert torch.allclose(alone[i], each[i], atol=1e-5)
    assert torch.equal(diffusion.sample(network, 3, "ddim", steps=2, label=torch.tensor([4, 0, 9])), each)
    parts = diffusion.sample(network, 3, "ddim", steps=2, label=[4, 0, 9], batch_size=2)
    assert torch.allclose(parts, each, atol=1e-4), "a label stays with its sample in every batch"
    free = diffusion.sample(network, 3, "ddim", steps=2)
    assert not torch.allclose(free, each, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 10}, "label: found 10; the model has the classes 0 to 9"),
        ({"label": -1}, "label: found -1"),
        ({"label": [1, 2]}, "found 2 labels for 3 samples"),
        ({"guidance": 2.0}, "give a label too"),
        ({"n": 0}, "n: found 0"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"steps": 0}, "steps: found 0"),
        ({"sampler": "ode", "tolerance": -1e-3}, "tolerance: found -0.001"),
        ({"sampler": "odee"}, "Did you mean 'ode'"),
        ({"sampler": "ode", "eta": 0.5}, "eta: sampler 'ode' does not take it"),
        ({"sampler": "ddim", "eta": -0.5}, "eta: found -0.5"),
        ({"sampler": "sde", "eta": -0.5}, "eta: found -0.5"),
        ({"sampler": "ancestral", "variance": "lowest"}, "Did you mean 'lower'"),
        ({"sampler": "ode", "method": "dopri4"}, "Did you mean 'dopri"),
        ({"sampler": samplers.DDIM(), "eta": 0.5}, "fields of the sampler"),
        ({"labels": 3}, "labels: neither sample nor .*Did you mean 'label'"),
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"sampler": "adams", "predictr": 3}, "Did you mean 'predictor'"),
    ],
)
def test_what_a_draw_does_not_take_is_refused(network, options, message):
    options = {"n": 3, "sampler": "ddim", "steps": 2, **options}
    with pytest.raises(UserError, match=message):
        diffusion.sample(network, **options)


def test_labels_and_guidance_need_a_model_with_classes():
    denoiser = exact.Gaussian(torch.zeros(2), 1.0, VP())
    with pytest.raises(UserError, match="trained without labels"):
        diffusion.sample(denoiser, 2, label=1)
    with pytest.raises(UserError, match="guidance: the model was trained without labels"):
        diffusion.sample(denoiser, 2, guidance=2.0)


def test_guidance_of_one_is_off_and_costs_nothing(network):
    plain = diffusion.sample(network, 3, "ddim", steps=4, label=2)
    with count_evaluations(network.denoiser) as count:
        assert torch.equal(diffusion.sample(network, 3, "ddim", steps=4, label=2, guidance=1.0), plain)
    assert count.rows == 3 * 4
    with count_evaluations(network.denoiser) as count:
        guided = diffusion.sample(network, 3, "ddim", steps=4, label=2, guidance=3.0)
    assert count.rows == 2 * 3 * 4, "a guided pair counts two"
    assert not torch.allclose(guided, plain, atol=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_guided_samples_of_gaussians_are_affine_in_the_noise(weight):
    """Guidance towards a class with the same law of x_t in width: the score is linear, so is the map, and the mean is
    the path's: the guided mean m_free + w (m_class - m_free) with the common deviation."""
    schedule = VP()
    denoiser = ClassGaussians((0.9, -0.3), (0.4, 0.4), schedule)
    x_1 = laws.seeded(30, 1)
    guided = diffusion.sample(denoiser, 30, label=0, guidance=weight, noise=x_1, tolerance=1e-7)
    mean = -0.3 + weight * (0.9 + 0.3)
    expected = diffusion.sample(
        exact.Gaussian(laws.f64([mean]), laws.f64([0.4]), schedule), 30, noise=x_1, tolerance=1e-7
    )
    assert torch.allclose(guided, expected, atol=1e-4)


def test_the_callback_and_the_progress_are_told_of_everything(network):
    steps, done = [], []
    diffusion.sample(
        network, 5, "ddim", steps=3, batch_size=2,
        callback=lambda step, t, x, x_hat: steps.append((step, len(x), t)),
        progress=lambda drawn, n: done.append((drawn, n)),
    )  # fmt: skip
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert [(step, size) for step, size, _ in steps] == [(step, size) for size in (2, 2, 1) for step in (0, 1, 2)]
    assert [t == 0.0 for _, _, t in steps] == [False, False, True] * 3


def test_drawing_leaves_the_model_as_it_was(network):
    denoiser = Clipped(network.denoiser)
    denoiser.train()
    state = torch.get_rng_state()
    diffusion.sample(denoiser, 2, "sde", steps=2)
    assert denoiser.training
    assert network.denoiser.network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    network.denoiser.eval()


@pytest.mark.parametrize(
    ("sampler", "name", "options"),
    [
        (samplers.DDIM(steps=7, eta=0.5), "ddim", {"steps": 7, "eta": 0.5}),
        (samplers.Heun(steps=4), "heun", {"steps": 4}),
        (samplers.ExponentialSDE(eta=0.5, steps=6), "sde", {"steps": 6, "eta": 0.5}),
        (samplers.ODE("rk4", steps=5), "ode", {"steps": 5, "method": "rk4"}),
        (samplers.Ancestral(variance="upper", steps=5), "ancestral", {"steps": 5, "variance": "upper"}),
        (samplers.DPMSolver2(), "dpm-solver-2", {}),
    ],
)
def test_a_sampler_with_its_settings_draws_what_its_name_and_options_draw(network, sampler, name, options):
    for model in (network.denoiser, laws.gaussian(VP())):
        drawn = diffusion.sample(model, 2, sampler=sampler, seed=3)
        assert torch.equal(drawn, diffusion.sample(model, 2, sampler=name, seed=3, **options))
    assert torch.equal(diffusion.sample(network, 2, sampler=sampler), diffusion.sample(network, 2, name, **options))


def test_every_sampler_takes_its_steps_and_is_kept_by_its_settings_alone():
    for name in samplers.names():
        sampler = samplers.build(name, steps=4)
        assert sampler.steps == 4
        assert repr(sampler) == repr(samplers.build(name)), "by which tuned grids are kept"
        assert sampler.settings == samplers.build(name).settings
        assert "steps" not in sampler.settings
    for around in (
        samplers.SDEdit(torch.zeros(1), 0.0, samplers.Heun(steps=4)),
        samplers.RePaint(torch.zeros(1), torch.ones(1, dtype=torch.bool), samplers.Ancestral(steps=4)),
    ):
        assert around.default_steps == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sampler": samplers.DDIM(steps=5), "steps": 6}, "steps: found 6, and 5 in the sampler"),
        ({"sampler": samplers.DDIM}, "sampler: found the class DDIM; needs a name or a sampler"),
        ({"sampler": 3}, "sampler: found a int; needs a name or a sampler"),
        ({"sampler": None}, "sampler: found a NoneType; needs a name or a sampler"),
        ({"sampler": samplers.DDIM(), "eta": 0.5}, "eta: fields of the sampler; set them where it is made"),
        ({"sampler": samplers.DDIM(), "etta": 0.5}, "etta: fields of the sampler"),
    ],
)
def test_samplers_that_are_none_or_are_told_twice_are_refused(options, told):
    with pytest.raises(UserError, match=told) as error:
        diffusion.sample(laws.gaussian(VP()), 2, **options)
    assert "\n" not in str(error.value)


def test_steps_of_a_sampler_are_a_whole_number():
    with pytest.raises(UserError, match=r"steps: found True; must be a whole number"):
        samplers.DDIM(steps=True)


@pytest.mark.parametrize(
    "kind", [list, tuple, lambda t: torch.tensor(t, dtype=torch.float64), np.array, lambda t: np.array(t[::-1])[::-1]]
)
def test_a_trained_model_takes_times_of_any_kind(kind):
    model = diffusion.load("pretrained:digits")
    times = [0.9, 0.5, 0.0]
    found = diffusion.sample(model, 1, sampler="ddim", grid=kind(times))
    assert torch.equal(found, diffusion.sample(model, 1, sampler="ddim", grid=times))
