"""`--fitted-start`: draws and figures of a path that does not end in noise, begun in a Gaussian of other images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusion
from diffusion.commands import records
from diffusion.commands.app import command, sample
from diffusion.commands.dispatch import main
from diffusion.commands.subjects import images_of
from diffusion.data import load_images
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.models.load import load_named
from diffusion.schedules import fitted_start

# An exact network for data N(0.1, 0.3^2) on a path of which a seventh of the variance at its end is signal.
MODEL = """
import torch
import diffusion

betas = torch.full((1000,), 1.0 - 0.13 ** (1 / 1000.0), dtype=torch.float64)
table = torch.cumprod(1 - betas, 0)


def network(x, i):
    a = table[i].to(x).reshape(-1, 1, 1, 1)
    return 0.1 + 0.09 * a.sqrt() * (x - 0.1 * a.sqrt()) / (0.09 * a + 1 - a)


options = {"predicts": "x", "time": "index-rounded", "shape": (1, 4, 4), "levels": 256, "log_snr_max": 6.0}
model = diffusion.adopt(network, path={"betas": betas.tolist()}, **options)
"""
FEW = ("--sampler", "ddim", "--steps", "4", "--n", "4", "--device", "cpu")
START = ("--fitted-start", "diagonal", "--data", "images.npz")


def images(seed=0, n=60):
    x = 0.1 + 0.3 * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    np.savez("images.npz", images=Dequantizer(256).quantize(x)[:, 0].numpy())


@pytest.fixture
def made(here):
    Path("m.py").write_text(MODEL)
    images()
    return load_named("m.py:model"), load_images("folder", path="images.npz")


def drawn(*argv):
    return command(sample, ["--run", "m.py:model", *FEW, *argv])


@pytest.mark.filterwarnings("ignore::diffusion.models.adopt.AdoptedNote")
def test_a_draw_begins_there_and_its_record_says_so(made, capsys):
    model, data = made
    assert drawn(*START, "--out", "a.npz") == 0, capsys.readouterr().err
    assert drawn(*START, "--out", "a.png") == 0
    start = model.fitted_start(data.train[:])
    wanted = model.sample(4, sampler="ddim", steps=4, fitted_start=start)
    with np.load("a.npz") as arrays:
        found = torch.from_numpy(arrays["images"].astype(np.float32)) / 127.5 - 1.0
    torch.testing.assert_close(found[:, None], wanted, rtol=0, atol=1 / 127)
    assert float((model.sample(4, sampler="ddim", steps=4) - wanted).abs().max()) > 0.02, "more than a level"
    record = diffusion.commands.sample.record.SampleRecord.read("a.png")
    assert record.settings["fitted_start"] == "diagonal"
    assert record.images["fitted_start"] == [repr(start)]
    again = ("--from", "a.png", "--run", "m.py:model", "--device", "cpu", "--out")
    assert command(sample, [*again, "b.png"]) == 0
    assert "the same pixels" in capsys.readouterr().out
    images(seed=1)
    assert command(sample, [*again, "c.png"]) == 2
    assert "began in FittedStart(diagonal, sha256=" in capsys.readouterr().err
    assert not Path("c.png").exists()


def test_a_figure_begins_there_and_is_stored_as_that(made, capsys):
    model, data = made
    asked = ["evaluate", "m.py:model", "--data", "images.npz", "--method", "elbo", "--draws", "8", "--wandb", "off"]
    with pytest.warns(UserWarning, match=r"not in noise .*--fitted-start diagonal"):
        assert command(main, asked) == 0
    assert command(main, [*asked, "--fitted-start", "diagonal"]) == 0
    capsys.readouterr()
    assert command(main, [*asked, "--fitted-start", "diagonal"]) == 0
    assert "(cached)" in capsys.readouterr().out
    found = [records.read(path) for path in Path("evaluations").rglob("elbo-*.json")]
    begun, plain = sorted(found, key=lambda one: "fitted_start" not in one.protocol.options)
    start = model.fitted_start(data.train[:])
    assert begun.protocol.options["fitted_start"] == repr(start)
    held_out, _ = images_of(data, "test", None)
    options = {"method": "elbo", "evaluations": 8, "indices": begun.estimate.indices}
    again = diffusion.log_likelihood(model, held_out, fitted_start=start, **options)
    torch.testing.assert_close(again.log_prob, begun.estimate.log_prob, rtol=1e-6, atol=1e-6)
    assert float(begun.estimate.log_prob.mean()) > float(plain.estimate.log_prob.mean()) + 0.05
    assert command(main, [*asked, "--split", "train", "--fitted-start", "diagonal", "--images", "3"]) == 0
    (trained,) = {json.dumps(one.protocol.options["fitted_start"]) for path in Path("evaluations").rglob("elbo-*.json")
                  if (one := records.read(path)).protocol.data["split"] == "train"}  # fmt: skip
    assert trained == json.dumps(repr(model.fitted_start(data.validation[:])))


@pytest.mark.filterwarnings("ignore::diffusion.models.adopt.AdoptedNote")
def test_a_start_is_known_by_its_images_and_not_by_its_rounding(made, capsys, monkeypatch):
    """Sums are rounded otherwise on another machine: what was drawn there is drawn here again, nearly."""
    model, data = made
    assert drawn(*START, "--out", "a.png") == 0, capsys.readouterr().err
    starts = [model.fitted_start(data.train[:], kind) for kind in ("diagonal", "full")]
    monkeypatch.setattr(fitted_start, "_reals", lambda *given, real=fitted_start._reals: real(*given) * (1.0 + 1e-15))
    for kind, start in zip(("diagonal", "full"), starts, strict=True):
        again = model.fitted_start(data.train[:], kind)
        assert repr(again) == repr(start)
        assert not torch.equal(again.mean, start.mean)
        assert repr(model.fitted_start(data.train[1:], kind)) != repr(start)
    assert len({repr(start) for start in starts}) == 2
    given = [fitted_start.FittedStart(torch.full((2,), value), torch.ones(2)) for value in (0.0, 1.0)]
    assert repr(given[0]) != repr(given[1])
    assert command(sample, ["--from", "a.png", "--run", "m.py:model", "--device", "cpu", "--out", "b.png"]) == 0


@pytest.mark.filterwarnings("ignore::diffusion.models.adopt.AdoptedNote")
def test_a_model_with_a_start_of_its_own_begins_there(here, capsys):
    own = "model.start = diffusion.schedules.FittedStart(torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.01))\n"
    Path("m.py").write_text(MODEL + own)
    images()
    model = load_named("m.py:model")
    wanted, noise = (one.sample(4, sampler="ddim", steps=4) for one in (model, model.begun_in(None)))
    other = model.begun_in(None).fitted_start(load_images("folder", path="images.npz").train[:])
    fitted = model.begun_in(other).sample(4, sampler="ddim", steps=4)
    assert repr(model.start) != repr(other)
    for argv, expected in (((), wanted), (START, fitted)):
        assert drawn(*argv, "--out", f"{len(argv)}.npz") == 0, capsys.readouterr().err
        with np.load(f"{len(argv)}.npz") as arrays:
            found = torch.from_numpy(arrays["images"].astype(np.float32)) / 127.5 - 1.0
        torch.testing.assert_close(found[:, None], expected, rtol=0, atol=1 / 127)
    assert float((wanted - noise).abs().max()) > 0.02 < float((wanted - fitted).abs().max())


def test_a_start_is_of_its_own_size():
    model = diffusion.load("pretrained:digits")
    zeros = torch.zeros(model.facts.shape)
    begun = model.begun_in(diffusion.schedules.FittedStart(zeros, zeros + 1.0))
    assert begun.at_size(8) is begun
    with pytest.raises(UserError, match=r"^size: found 12; pretrained:digits begins in a start of data \(1, 8, 8\)"):
        begun.sample(1, size=12)
    assert begun.begun_in(None).at_size(12).facts.shape == model.at_size(12).facts.shape == (1, 12, 12)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--data", "images.npz"), "--data: needs --fitted-start"),
        (("--fitted-start", "full", "--data", "few.npz"), "--fitted-start: found "),
        (("--fitted-start", "diagonal", "--data", "nothing.npz"), "nothing.npz does not exist; --data PATH says where"),
        (
            ("--fitted-start", "diagonal", "--data", "wide.npz"),
            "does not hold the images that m.py:model was trained on: shape",
        ),
        (("--fitted-start", "most"), "--fitted-start: invalid choice: 'most'"),
    ],
)
def test_what_does_not_fit_is_one_line(made, capsys, argv, told):
    np.savez("few.npz", images=np.arange(320, dtype=np.uint8).reshape(20, 4, 4) % 251)
    np.savez("wide.npz", images=np.arange(480, dtype=np.uint8).reshape(20, 4, 6) % 251)
    assert drawn(*argv, "--out", "a.png") == 2
    err = capsys.readouterr().err
    assert told in err, err
    assert err.count("\n") == 1
    assert not Path("a.png").exists()
