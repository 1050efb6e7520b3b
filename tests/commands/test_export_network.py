"""The network as ONNX and as a program of torch: the same numbers, and a description from which x_hat follows."""

import base64
import json
import math

import numpy as np
import pytest
import torch
from made_runs import make_run
from tiny_configs import autoencoder_config, digits_config, toy_config

import diffusion
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.commands.export import network
from diffusion.commands.export.network import denoiser_of_network, describing, description, named
from diffusion.data.normalizer import fit
from diffusion.errors import way_to_install
from diffusion.likelihood.dequantization import Dequantizer
from diffusion.models.build import DataFacts
from diffusion.storage import runs

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
    folder, program = tmp_path_factory.mktemp("networks"), network.exported(denoiser_of_network(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "exported", lambda denoiser: program)  # which takes seconds, and is the same for both
        for layout in ("torch", "onnx"):
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


def test_the_description_says_how_levels_become_x(model):
    told = description(model, model.denoiser)
    k = torch.arange(17)
    x = (2 * k + 1) / 17 - 1
    assert (
        told["data_to_x"]
        == "level k, 0 to 16, is x = (2 k + 1) / 17 - 1; back: k = floor(17 (x + 1) / 2), cut to 0 to 16"
    )
    torch.testing.assert_close(Dequantizer(17).center(k), x)
    assert torch.equal((17 * (x + 1) / 2).floor().clamp(0, 16).long(), k)
    assert "normalizer" not in told


@pytest.mark.parametrize("kind", ["standard", "whiten"])
def test_the_description_leads_back_to_the_units_of_the_data(kind, tmp_path):
    """By numpy, from the text of the file alone."""
    mix = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    data = 100.0 + torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ mix
    normalizer = fit(kind, lambda: [data], (2,))
    facts = DataFacts("toy", (2,), None, 0, normalizer=normalizer)
    model = diffusion.load(make_run(tmp_path, toy_config(tmp_path), facts))
    told = json.loads(describing(model, model.denoiser))
    assert told["levels"] is None
    plain = told["normalizer"]
    mean, std = np.array(plain["mean"]), np.sqrt(plain["variances"])
    x = (data.numpy() - mean) / std
    back = mean + std * x
    if kind == "whiten":
        u = np.frombuffer(base64.b64decode(plain["directions"]), "<f8").reshape(2, 2)
        x = (data.numpy() - mean) @ u / std
        back = mean + (std * x) @ u.T
        np.testing.assert_allclose(x.T @ x / 50, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(model.normalizer.normalize(data).numpy(), x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(back, data.numpy(), rtol=1e-12)
    assert ("U^T" in told["data_to_x"]) == (kind == "whiten")


def test_a_checkpoint_is_named_by_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs", toy_config(tmp_path), DataFacts("toy", (2,), None, 0))
    model = diffusion.load(run)
    assert named(model) == run.name
    model.source = f"runs/{run.name}/checkpoints/last.ckpt"
    path = tmp_path / model.source
    path.write_bytes(b"x")
    assert named(model) == f"{run.name}/checkpoints/last.ckpt"
    assert runs.resolve_weights(named(model)).samefile(path)


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
    assert f"onnx, which is not installed; {way_to_install('web')}" in capsys.readouterr().err
