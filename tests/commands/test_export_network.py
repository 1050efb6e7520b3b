"""The network as ONNX and as a program of torch: the same numbers, and a description from which x_hat follows."""

import json
import math

import numpy as np
import pytest
import torch
from made_runs import make_run
from tiny_configs import autoencoder_config, digits_config

import diffusion
from diffusion.commands.app import command
from diffusion.commands.dispatch import main

CONDITIONAL = ("denoiser.conditional=true", "network.attention=[8]", "network.multipliers=[1,2]")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return diffusion.load(make_run(folder, digits_config(folder, *CONDITIONAL)))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """The folders of both layouts, by name."""
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("networks")
    for layout in ("onnx", "torch"):
        assert command(main, ["export", model.source, str(folder / layout), "--to", layout]) == 0
    return folder


def inputs(n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return {"x": x, "c_noise": torch.linspace(-5.0, 5.0, n), "labels": torch.arange(n) % 11}


@pytest.mark.parametrize("n", [1, 7])
def test_onnx_gives_what_the_network_gives(n, model, written):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(written / "onnx" / "network.onnx"), providers=["CPUExecutionProvider"])
    given = inputs(n)
    (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        expected = model.denoiser.network(*given.values())
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map["diffusion"]
    assert told == (written / "onnx" / "network.json").read_text()


@pytest.mark.parametrize("n", [1, 7])
def test_the_program_of_torch_gives_what_the_network_gives(n, model, written):
    program = torch.export.load(str(written / "torch" / "network.pt2"))
    given = inputs(n)
    with torch.no_grad():
        expected = model.denoiser.network(*given.values())
        torch.testing.assert_close(program.module()(*given.values()), expected, rtol=1e-6, atol=1e-6)


def test_the_denoiser_follows_from_the_description(model, written):
    """c_in, c_noise and v as the file says, written out here: x = alpha x_t - sigma v on the cosine path."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(written / "onnx" / "network.onnx"), providers=["CPUExecutionProvider"])
    told = json.loads((written / "onnx" / "network.json").read_text())
    assert (told["output"], told["shape"], told["no_label"], told["levels"]) == ("v", [1, 8, 8], 10, 17)
    assert told["model"] == "digits-0001"  # and not where it is on this machine
    t, x_t = 0.3, inputs(4)["x"]
    alpha, sigma = (float(value) for value in model.denoiser.schedule(torch.tensor(t, dtype=torch.float64)))
    scale = 1.0 / math.sqrt((alpha * told["sigma_data"]) ** 2 + sigma**2)
    given = {
        "x": (scale * x_t).numpy(),
        "c_noise": np.full(4, math.log(alpha**2 / sigma**2) / 4, np.float32),
        "labels": np.full(4, told["no_label"]),
    }
    (v,) = session.run(None, given)
    with torch.no_grad():
        expected = model.denoiser(x_t, t)
    torch.testing.assert_close(alpha * x_t - sigma * torch.from_numpy(v), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--to", "onx"), "--to: invalid choice: 'onx'"),
        (("--to", "onnx", "--runtime", "x"), "--runtime: is for --to web, the page; found --to onnx"),
        (
            ("--to", "web", "--runtime", "nowhere"),
            "--runtime: nowhere has no dist/ort.wasm.min.mjs; accepted: the folder",
        ),
    ],
)
def test_what_is_refused(argv, message, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(main, ["export", model.source, "out", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_models_without_such_a_network_are_refused(tmp_path, capsys):
    run = make_run(tmp_path / "runs", autoencoder_config("vae", tmp_path))
    assert command(main, ["export", str(run), str(tmp_path / "out"), "--to", "torch"]) == 2
    assert "is of family 'vae'; a diffusion model has a network to export" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_missing_library_is_named(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffusion.commands.export.network.find_spec", lambda name: None)
    assert command(main, ["export", model.source, str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "onnx, which is not installed; pip install 'diffusion[web]'" in capsys.readouterr().err
