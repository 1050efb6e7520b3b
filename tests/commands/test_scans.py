"""Images of 65,536 levels through the commands: trained, measured and drawn whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_configs import DIGITS

from diffusion.commands import records
from diffusion.commands.app import command, sample
from diffusion.commands.dispatch import main
from diffusion.commands.train.train import train
from diffusion.models.load import load

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    (tmp_path / "scans").mkdir()
    pixels = np.random.default_rng(0).integers(0, 2**16, (30, 8, 8)).astype(np.uint16)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "scans" / f"{i}.tif")
    return tmp_path


RUN = ("--config", "digits", *DIGITS, "name=scans", "data.name=folder", "data.path=scans", "data.levels=all",
       "evaluation.enabled=false", "data.flip=false")  # fmt: skip


def test_scans_are_trained_on_measured_and_drawn(here, capsys):
    assert command(train, list(RUN)) == 0, capsys.readouterr().err
    said = " ".join(capsys.readouterr().out.replace(str(here) + "/", "").split())
    assert "30 images from scans: 8 x 8 (width x height), grey, 65536 levels" in said
    model = load("runs/scans-0001")
    assert model.facts.levels == 65536
    asked = ["evaluate", "scans-0001", "--method", "elbo", "--images", "3", "--wandb", "off", "--device", "cpu"]
    assert command(main, asked) == 0, capsys.readouterr().err
    (path,) = (here / "runs" / "scans-0001" / "evaluations").glob("*.json")
    estimate = records.read(path).estimate
    assert estimate.levels == 65536
    assert 15 < float(estimate.bits_per_dim.mean()) < 30, "uniform levels cost 16 bits each, a poor model more"
    options = ["--n", "3", "--steps", "2", "--sampler", "ddim", "--device", "cpu"]
    assert command(sample, [*options, "--out", "s.npz"]) == 0, capsys.readouterr().err
    with np.load("s.npz") as arrays:
        drawn = arrays["images"]
    assert drawn.dtype == np.uint16
    x = model.sample(3, steps=2, sampler="ddim")
    assert torch.equal(torch.from_numpy(drawn.astype(np.int32)), model.dequantizer.quantize(x.double())[:, 0])
    assert command(sample, [*options, "--out", "folder"]) == 2
    assert "samples of 65,536 levels are kept whole in x.npz, x.npy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        (
            "vae-digits",
            ["autoencoder.multipliers=[1]"],
            "levels: found 65,536; an autoencoder's decoder",
        ),
        (
            "digits",
            ["denoiser.prediction=levels", "objective.dequantize=false"],
            "denoiser.prediction: found 'levels'; it takes up to 256",
        ),
    ],
)
def test_what_counts_each_level_is_for_256(here, capsys, config, more, message):
    settings = [option for option in RUN[2:] if option.startswith(("data.", "device", "logging."))]
    assert command(train, ["--config", config, *settings, *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
