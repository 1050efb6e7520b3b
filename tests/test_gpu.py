"""What a GPU computes is what the CPU does: noise, every sampler, likelihoods, control, and each family's training."""

import pytest
import torch
from tiny_configs import autoencoder_config, digits_config, toy_config

import diffusion
from diffusion import samplers
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.data import load_images
from diffusion.denoisers import exact
from diffusion.numerics import random
from diffusion.schedules import Cosine
from diffusion.training.fit import fit

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def float32_as_float32():
    """Convolutions in TF32, torch's default, differ from the CPU's by 1e-3."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def models():
    return diffusion.load("pretrained:digits"), diffusion.load("pretrained:digits", DEVICE)


@pytest.fixture(scope="module")
def images():
    return load_images("digits").test[:6]


def test_keyed_noise():
    """Words to the last bit, also of rows with their own step and stream; what is made of them to rounding."""
    rows = torch.tensor([0, 1, 77, 2**31, 2**32 + 5, 2**47])
    keys = torch.arange(6) * 1000
    for step, stream in ((3, 1), (keys, 2), (keys, keys % 7)):
        found = random._words(7, rows, step, 37, stream, DEVICE)
        for ours, expected in zip(found, random._words(7, rows, step, 37, stream, "cpu"), strict=True):
            assert torch.equal(ours.cpu(), expected)
    if DEVICE == "cuda":
        pytest.importorskip("triton")
        assert random._kernel() is not None
    for draw in (random.uniform, random.normal):
        options = {"stream": random.STREAM_TRAIN_NOISE, "dtype": torch.float64}
        here, there = (draw(7, where, 3, (2, 5), **options) for where in (rows, rows.to(DEVICE)))
        torch.testing.assert_close(there.cpu(), here, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler(name, models):
    here, there = (model.sample(3, seed=5, sampler=name, **({} if name in ("ode", "adaptive-sde") else {"steps": 6}))
                   for model in models)  # fmt: skip
    assert there.device.type == DEVICE
    error = (there.cpu() - here).abs().mean()
    # adaptive steps that are taken here and refused there, by a last bit, end apart
    assert float(error) < (0.05 if name == "adaptive-sde" else 2e-3)


def test_an_exact_model_in_float64():
    moments = torch.zeros(4, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    here = exact.Gaussian(*moments, Cosine())
    there = exact.Gaussian(*moments, Cosine()).to(DEVICE)
    draws = [diffusion.sample(model, 50, "ode", dtype=torch.float64, tolerance=1e-8).cpu() for model in (here, there)]
    torch.testing.assert_close(*draws, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["ode", "elbo", "immse"])
def test_likelihoods(method, models, images):
    options = {"tolerance": 1e-4} if method == "ode" else {}
    here, there = (model.log_likelihood(images, method=method, **options).bits_per_dim.cpu() for model in models)
    torch.testing.assert_close(there, here, rtol=2e-3, atol=2e-3)


def test_encoding_editing_and_interpolation(models):
    here, there = models
    x = here.sample(2, steps=8)
    for act in (
        lambda model: diffusion.encode(model, x, "adams", steps=8),
        lambda model: diffusion.edit(model, x, strength=0.4, n=2, steps=8),
        lambda model: diffusion.interpolate(model, x[0], x[1], n=3, sampler="adams", steps=8),
    ):
        assert float((act(there).cpu() - act(here)).abs().mean()) < 5e-3


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("pretrained:digits", "--device", DEVICE, "--wandb", "off")
    assert command(main, ["evaluate", *common, "--images", "16", "--method", "elbo"]) == 0
    assert command(main, ["quality", *common, "--samples", "64", "--steps", "5"]) == 0
    assert command(main, ["doctor", "--device", DEVICE]) == 0


RUNS = {
    "toy": lambda folder, *more: toy_config(folder, *more),
    "digits": lambda folder, *more: digits_config(folder, *more),
    "by class": lambda folder, *more: digits_config(folder, "denoiser.conditional=true", *more),
    "levels": lambda folder, *more: digits_config(
        folder, "schedule.name=learned", "schedule.log_snr_max=8", "denoiser.prediction=levels",
        "objective.time=uniform", "objective.dequantize=false", *more,
    ),
    "vae": lambda folder, *more: autoencoder_config("vae", folder, *more),
    "eae": lambda folder, *more: autoencoder_config("eae", folder, "trainer.batch_size=16", *more),
}  # fmt: skip


def losses(run):
    from diffusion.training.logs.metrics import read_metrics

    return torch.tensor([row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row])


PLAIN = ("trainer.precision=32", "trainer.compile=false")
LOOKS = ("trainer.validate_every=3", "trainer.sample_every=3")
WAYS = {
    "float32": (PLAIN, 1e-3),
    "bf16": (("trainer.precision=bf16", "trainer.compile=false"), 5e-2),
    "bf16, compiled": (("trainer.precision=bf16", "trainer.compile=true"), 5e-2),
    "float32, compiled": (("trainer.precision=32", "trainer.compile=true", *LOOKS), 1e-3),
    "images on the device": ((*PLAIN, "data.place=device"), 1e-3),
    "workers": ((*PLAIN, "trainer.workers=2"), 1e-3),
}


@pytest.mark.filterwarnings("default:.*attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_training_follows_the_cpu(name, way, tmp_path, pytestconfig):
    """Float32 the same losses, bf16 near them."""
    settings, tolerance = WAYS[way]
    if "compiled" in way and pytestconfig.getoption("--jaxtyping-packages", None):
        pytest.skip("checks of types are not compiled: leave them out by -o addopts=")
    if name == "toy" and way == "images on the device":
        pytest.skip("points are drawn, not held")
    expected = losses(fit(RUNS[name](tmp_path / "cpu", *PLAIN)).run)
    run = fit(RUNS[name](tmp_path / "there", f"device={DEVICE}", *settings)).run
    found = losses(run)
    assert len(found) == len(expected) == 6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    model = diffusion.load(run, DEVICE)
    assert bool(model.sample(2, **({"steps": 2} if name not in ("vae", "eae") else {})).isfinite().all())


def test_a_run_goes_on_where_it_was(tmp_path):
    common = (f"device={DEVICE}", "trainer.precision=32", "optimizer.decay=constant", "trainer.compile=false")
    whole = losses(fit(digits_config(tmp_path / "whole", *common)).run)
    first = digits_config(tmp_path / "parts", *common, "trainer.checkpoint_every=3")
    run = fit(first.replace(trainer=first.trainer.replace(steps=3))).run
    fit(first, run)
    torch.testing.assert_close(losses(run), whole, rtol=1e-4, atol=1e-4)


def test_many_images_at_once(models):
    """More rows than a kernel's grid takes in one dimension of a launch: each is as in a smaller draw."""
    found = models[1].sample(2**16 + 3, steps=1, batch_size=2**16 + 3)
    some = models[1].sample(2**16 + 3, steps=1, batch_size=2**14)
    torch.testing.assert_close(found, some, rtol=1e-3, atol=1e-3)
