"""What is compiled is one graph: the loss of every objective and schedule, from levels to its value, and no second one.

Counted with a backend that compiles nothing, so that no compiler is needed. A GPU gains nothing from a graph that is
cut in the middle, and a run waits for each that is compiled anew.
"""

import contextlib
import subprocess
import sys

import pytest
import torch
from tiny_configs import autoencoder_config, digits_config
from torch._dynamo.utils import counters

import diffusion
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.networks.layers import channels_last
from diffusion.numerics.random import Noise
from diffusion.samplers import DDIM, Ancestral, EulerMaruyama
from diffusion.schedules import time_grid
from diffusion.training.fit import _compile, fit
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.modules.build import build_module
from diffusion.training.subject import prepare

SLOW = pytest.mark.slow
FACTS = DataFacts("digits", (1, 8, 8), 17, 10)
FLOW = ("schedule.name=rectified", "objective.time=logit-normal", "denoiser.prediction=velocity")
OBJECTIVES = {
    "cosine": ("network.dropout=0.3", "denoiser.conditional=true"),
    "learned": ("schedule.name=learned", "objective.time=uniform"),
    "ddpm": ("schedule.name=ddpm", "objective.time=uniform", "objective.weighting=simple", "objective.stratified=false",
             "denoiser.prediction=eps", "objective.dequantize=false"),
    "edm": ("schedule.name=edm", "objective.weighting=edm", "objective.time=log-normal", "denoiser.prediction=edm"),
    "vp": ("schedule.name=vp", "objective.time=uniform", "objective.weighting=min-snr", "denoiser.prediction=x"),
    "flow": FLOW,
    "ve": ("schedule.name=ve", "denoiser.prediction=score"),
    "subvp": ("schedule.name=subvp", "objective.time=uniform", "objective.weighting=likelihood"),
    "levels": ("denoiser.prediction=levels", "objective.dequantize=false", "objective.time=uniform"),
}  # fmt: skip
SIZE = 4


@contextlib.contextmanager
def graphs(number):
    """No break, and so many graphs, whatever is called within."""
    torch._dynamo.reset()
    counters.clear()
    yield
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == number


@pytest.fixture
def compiles_nothing(monkeypatch, pytestconfig):
    if pytestconfig.getoption("jaxtyping_packages", None):
        pytest.skip("dynamo cannot trace the shape checks of the tests")
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, backend="eager", **options))


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=SLOW)])
def test_without_the_shape_checks_of_the_tests(pytestconfig, chosen):
    if pytestconfig.getoption("jaxtyping_packages", None):
        plain = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "-m", chosen]
        command = [sys.executable, "-m", "pytest", *plain, __file__]
        done = subprocess.run(command, capture_output=True, text=True, cwd=pytestconfig.rootpath)
        assert done.returncode == 0, done.stdout[-4000:]


def batch(k):
    return {
        "x": torch.randint(0, 17, (SIZE, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(k)),
        "labels": torch.arange(SIZE) % 10,
        "positions": torch.arange(SIZE),
        "step": k,
        "slice": 0,
    }


def nudged(module):
    """Networks start at zero: a loss or a sample would not depend on what is in them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return module


def losses_of(config, compiles, steps=3, prepare=lambda module: None):
    torch.manual_seed(0)
    module = nudged(build_module(config, FACTS, {}))
    prepare(module)
    module.train()
    module.is_logged = lambda: False  # there is no trainer
    module.compiles = compiles
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    found = []
    for k in range(steps):
        loss = module.training_step(batch(k), k)
        loss.backward()
        optimizer.step()  # a learned schedule changes with each step
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("cosine", "learned") else SLOW) for name in OBJECTIVES]
)
def test_the_loss_is_one_graph_and_the_same(tmp_path, compiles_nothing, name):
    config = digits_config(tmp_path, f"trainer.batch_size={SIZE}", *OBJECTIVES[name])
    with graphs(1):
        compiled = losses_of(config, compiles=True)
    assert compiled == pytest.approx(losses_of(config, compiles=False), rel=1e-5)
    assert len(set(compiled)) == 3


@pytest.mark.parametrize("family", ["vae", pytest.param("eae", marks=SLOW)])
def test_the_loss_of_an_autoencoder_is_one_graph(tmp_path, compiles_nothing, family):
    config = autoencoder_config(family, tmp_path, f"trainer.batch_size={SIZE}")
    with graphs(1):
        compiled = losses_of(config, compiles=True)
    assert compiled == pytest.approx(losses_of(config, compiles=False), rel=1e-5)


def test_a_denoiser_is_one_graph_for_all_steps_of_a_sampler(tmp_path, compiles_nothing):
    """Of a network that has all parts of a U-Net."""
    parts = ("network.multipliers=[1,2]", "network.attention=[4]", "network.fourier_features=[2,3]")
    denoiser = nudged(build_denoiser(digits_config(tmp_path, *parts), FACTS)).eval()
    expected = diffusion.sample(denoiser, 2, steps=4)
    with graphs(1):
        denoiser.compile(dynamic=False)
        found = diffusion.sample(denoiser, 2, steps=4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "sampler", [DDIM(), Ancestral(), *(pytest.param(one, marks=SLOW) for one in (DDIM(eta=0.5), EulerMaruyama()))]
)
def test_a_step_of_a_linear_sampler_is_one_graph_for_all_steps(tmp_path, compiles_nothing, sampler):
    """The network, what is made of its output, and the state's new value with its noise."""
    denoiser = nudged(build_denoiser(digits_config(tmp_path), FACTS)).eval()
    times = time_grid(denoiser.schedule, 5, "log-snr")[:-1]
    noise = Noise(0, torch.arange(2), FACTS.shape)
    along, x = sampler.noise_along(noise, denoiser.schedule, times), noise.initial()
    with torch.no_grad(), graphs(1):
        expected = sampler.integrate(denoiser, x, times, along, None, None)
        step = torch.compile(sampler.step, fullgraph=True, dynamic=False)
        for i, (t, _, *numbers) in enumerate(sampler.rows(denoiser.schedule, times)):
            z = along(i) if sampler.is_stochastic else None
            x, _ = step(denoiser, x, t, None, *map(torch.tensor, numbers), z)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_a_run_compiles_its_loss_and_that_of_validation_once_each(tmp_path, compiles_nothing):
    """Two validations, whose last batch is smaller, and training after each; the figures are those of no compiling."""
    found = []
    for compiles, number in (("true", 2), ("false", 0)):
        settings = ("trainer.validate_every=3", f"trainer.compile={compiles}", "evaluation.batch_size=80")
        config = digits_config(tmp_path / compiles, *settings, "evaluation.enabled=false")
        with graphs(number):
            run = fit(config).run
        rows = read_metrics(run / "metrics.jsonl")
        found.append({(row["step"], key): row[key] for row in rows for key in row if "loss" in key or "error" in key})
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert sum(key == "validation/loss" for _, key in found[0]) == 2


def test_with_channels_last_in_bf16_the_loss_is_the_same(tmp_path, compiles_nothing):
    """Without dropout, whose draws follow the order of what is stored."""
    parts = (f"trainer.batch_size={SIZE}", "network.multipliers=[1,2]", "network.attention=[4]", "network.dropout=0")
    config = digits_config(tmp_path, *parts)
    with torch.autocast("cpu", torch.bfloat16):
        expected = losses_of(config, compiles=False)
        with graphs(1):
            found = losses_of(config, compiles=True, prepare=lambda module: channels_last(module.networks))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "tiles", "expected"), [("bf16", True, True), ("bf16", False, False), ("auto", True, False)]
)
def test_channels_are_last_where_a_cpu_has_tiles_of_bf16(monkeypatch, tmp_path, precision, tiles, expected):
    changed = []
    monkeypatch.setattr("diffusion.training.fit.has_bf16_tiles", lambda device: tiles)
    monkeypatch.setattr("diffusion.training.fit.channels_last", changed.extend)
    subject = prepare(digits_config(tmp_path, f"trainer.precision={precision}"), None, None)
    assert _compile(subject, torch.device("cpu")) is False  # not by network: the whole loss
    assert changed == list(subject.module.networks) * expected
