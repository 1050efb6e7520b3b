"""Drawing as a GPU would see it: a loop of fixed steps neither waits for it nor copies, whatever steers the draw."""

import pytest
import torch
from on_device import LEVELS, SHAPE, Classifier, Scaling, make, unet
from pretended_device import DEVICE, Pretended

import diffusion
from diffusion.denoisers import given
from diffusion.denoisers.guidance import Autoguidance, ClassifierGuided, PathClassifier
from diffusion.denoisers.inverse_problems import METHODS, Blur, Downsample, Grey, Mask, Observation
from diffusion.numerics import random
from diffusion.samplers.repaint import RePaint
from diffusion.sampling import auto_grid, fit
from diffusion.schedules import DDPM, Cosine, Rectified

FIXED = [name for name in diffusion.samplers.names() if name not in ("adaptive-sde", "ode")]
STOCHASTIC = [name for name in FIXED if diffusion.samplers.build(name).is_stochastic]
KEPT = torch.ones(SHAPE, dtype=torch.bool)
KEPT[..., 2:] = False
OPERATORS = {"mask": Mask(KEPT), "downsample": Downsample(2), "blur": Blur(1.0), "grey": Grey((1.0,))}


# Operations of a step: 5 to 10 of an evaluation, whose network is one here, and 142 of a keyed normal, one with Triton.
MOST = {"heun": 18, "dpm-solver-2": 17, "dpm-solver-3": 28, "ancestral": 172, "sde": 195, "euler-maruyama": 195,
        "sa-solver": 195, "predictor-corrector": 355, "dpm-solver++sde": 385, "repaint": 850}  # fmt: skip
FIRST, LAST = 1, 4  # the steps between which is counted


def drawn_alike(device, made, expected=None, near=2e-5, **options):
    """What `made` makes on the device draws what it draws on the CPU, and three steps wait for and copy what is
    expected, nothing; returns their operations.
    """
    options, seen = {"sampler": "ddim", "steps": 6, "eta": 0.5, **options}, []

    def told(*_):
        seen.append((dict(device.counts), len(device.places)))

    there = diffusion.sample(made(DEVICE), 3, callback=told, **options)
    (before, start), (after, end) = seen[FIRST], seen[LAST]
    counts = {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}
    operations = counts.pop("operations")
    assert counts == (expected or {}), device.places[start:end]
    torch.testing.assert_close(there.to("cpu"), diffusion.sample(made("cpu"), 3, **options), rtol=near, atol=near)
    return operations


@pytest.mark.parametrize(
    ("name", "ahead"), [*((name, 1) for name in [*FIXED, "repaint"]), *((name, 2) for name in [*STOCHASTIC, "repaint"])]
)
def test_the_loop_of_a_sampler_neither_waits_nor_copies(device, monkeypatch, name, ahead):
    """Nor where noise is drawn: that of one step, as for images, or of some steps at once, as for few numbers."""
    sampler = RePaint(torch.ones(SHAPE), KEPT, resamples=2) if name == "repaint" else name
    monkeypatch.setattr(random, "_AHEAD", ahead)
    operations = drawn_alike(device, lambda where: make(Scaling()).to(where), sampler=sampler, eta=None)
    assert operations <= (LAST - FIRST) * MOST.get(name, 11)


def test_nor_does_that_of_ddpms_own_levels(device):
    drawn_alike(device, lambda where: make(schedule=DDPM(100)).to(where), sampler="ancestral", eta=None)


@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
def test_nor_does_guidance(device, interval):
    given = {"label": [0, 2, 1], "guidance": 2.0, "guidance_interval": interval}
    drawn_alike(device, lambda where: make(classes=3).to(where), **given)


@pytest.mark.parametrize("schedule", [None, Rectified()])
def test_nor_does_autoguidance(device, schedule):
    """Also by a guide of another path."""
    drawn_alike(
        device, lambda where: Autoguidance(make(classes=3).to(where), make(Scaling(), schedule).to(where), 2.0), label=1
    )


def test_nor_does_a_classifier_of_noisy_images(device):
    def made(where):
        return ClassifierGuided(make().to(where), PathClassifier(Classifier(), Cosine()).to(where), 3, 2.0)

    drawn_alike(device, made, label=[0, 2, 1])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "moment-matching"])
def test_nor_does_an_observation(device, method, operator):
    def made(where):
        of = OPERATORS[operator]
        return METHODS[method](make(Scaling()).to(where), Observation(of, of(torch.ones(1, *SHAPE)), 0.1))

    drawn_alike(device, made)


def test_moment_matching_reads_whether_it_is_solved(device):
    """Once before each iteration of its linear solver, whose number depends on the values."""
    of, iterations = OPERATORS["mask"], 2

    def made(where):
        observation = Observation(of, of(torch.ones(1, *SHAPE)), 0.1)
        return METHODS["moment-matching"](make().to(where), observation, iterations, 0.0)

    drawn_alike(device, made, {"waits": 3 * iterations}, near=1e-4)


@pytest.mark.parametrize(("labels", "waits"), [(None, 0), ((3, 3), 0), (3, 1), ((3, None), 2)])
def test_nor_does_an_adopted_network(device, labels, waits):
    """But one that needs a label, or is given none where there is none, reads in each step which samples have none."""

    def made(where):
        convention = {"path": "ddpm", "predicts": "eps", "time": "index", "shape": SHAPE, "levels": LEVELS}
        return diffusion.adopt(unet(classes=3 if labels else 0), labels=labels, **convention).to(where)

    drawn_alike(device, made, {"waits": 3 * waits} if waits else {}, label=1 if labels else None)


def test_the_whole_of_a_draw_costs_the_same_at_any_number_of_steps(device):
    """A copy of the samples' numbers, and a look whether the result is finite."""
    denoiser = make(Scaling()).to(DEVICE)
    for steps in (8, 16):
        device.clear()
        drawn = diffusion.sample(denoiser, 3, sampler="ddim", steps=steps)
        counts = [device.counts[name] for name in ("to_device", "waits", "to_host")]
        assert counts == [1, 1, 0], device.places
    assert drawn.device == DEVICE


def test_so_does_a_way_to_noise_and_back(device, monkeypatch):
    """A copy of what is given, and a look whether the result is finite; a draw from it has another of each."""
    as_tensor = given.as_tensor  # takes nothing of the device `meta`

    def taken(value, *more):
        return value if isinstance(value, Pretended) else as_tensor(value, *more)

    monkeypatch.setattr(given, "as_tensor", taken)
    x = torch.linspace(-1, 1, 32).reshape(2, *SHAPE)
    calls = {
        "encode": lambda model, steps: diffusion.encode(model, x, sampler="ddim", steps=steps),
        "edit": lambda model, steps: diffusion.edit(model, x, sampler="ddim", steps=steps),
        "interpolate": lambda model, steps: diffusion.interpolate(model, x[0], x[1], 3, sampler="abm", steps=steps),
    }
    for name, call in calls.items():
        found = []
        for steps in (4, 8):
            denoiser = make(Scaling()).to(DEVICE)
            device.clear()
            there = call(denoiser, steps)
            found.append([device.counts[kind] for kind in ("to_device", "waits", "to_host")])
            torch.testing.assert_close(there.to("cpu"), call(make(Scaling()), steps), rtol=2e-5, atol=2e-5)
        expected = {"encode": [1, 1, 0], "edit": [2, 1, 0], "interpolate": [2, 3, 0]}[name]
        assert found == [expected, expected], (name, device.places)


@pytest.mark.usefixtures("quick_tuning")
@pytest.mark.parametrize("options", [{"sampler": "fitted", "steps": 3}, {"sampler": "abm", "steps": 4, "grid": "auto"}])
def test_what_is_tuned_there_is_what_the_cpu_tunes(device, monkeypatch, options):
    """Nothing is read between two steps of a trajectory; a draw by what was found costs what any draw costs."""
    monkeypatch.setattr(fit, "_ITERATIONS", 1)
    denoiser, found = make(Scaling()).to(DEVICE), []
    with monkeypatch.context() as patch:
        original = auto_grid.trajectories

        def trajectories(*given, **more):
            before = {kind: device.counts[kind] for kind in ("to_device", "waits", "to_host")}
            made = original(*given, **more)
            found.append([device.counts[kind] - n for kind, n in before.items()])
            return made

        for module in (fit, auto_grid):
            patch.setattr(module, "trajectories", trajectories)
        first = diffusion.sample(denoiser, 3, **options)
    assert found
    assert all(counts == [1, 0, 2] for counts in found), device.places
    device.clear()
    again = diffusion.sample(denoiser, 3, **options)
    assert [device.counts[kind] for kind in ("to_device", "waits", "to_host")] == [1, 1, 0], device.places
    here = diffusion.sample(make(Scaling()), 3, **options)
    for drawn in (first, again):
        torch.testing.assert_close(drawn.to("cpu"), here, rtol=1e-4, atol=1e-4)
