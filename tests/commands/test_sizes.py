"""Sampling at another size than that of training: the law where it is known, the record, and what is refused."""

import numpy as np
import pytest
import torch
from made_runs import make_run
from PIL import Image
from test_draw import files, here, run_of_digits, run_sample  # noqa: F401
from tiny_configs import autoencoder_config, digits_config, toy_config
from torch import nn

import diffusion
from diffusion import load
from diffusion.commands.sample.record import SampleRecord
from diffusion.config import parse_config
from diffusion.denoisers import Clipped, NetworkDenoiser, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import UserError
from diffusion.models import DiffusionModel, LatentModel
from diffusion.models.build import DataFacts, build_denoiser, build_vae
from diffusion.schedules import Cosine

FACTS = DataFacts("digits", (1, 8, 8), 17, 10)
MEAN, STD = 0.2, 0.4


class GaussianPixels(nn.Module):
    """E[x | x_t] of independent pixels N(MEAN, STD^2) as a function of x_t and c_noise, at any size."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN))

    def forward(self, x_t, c_noise, labels=None):
        snr = torch.exp(4.0 * c_noise)[:, None, None, None]
        alpha, variance = torch.sqrt(snr / (1 + snr)), 1 / (1 + snr)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + variance)
        return self.mean + gain * (x_t - alpha * self.mean)


def gaussian_pixels(multiple=2):
    """Trained, so to speak, on 4 x 4 pixels."""
    return NetworkDenoiser(GaussianPixels(), Cosine(), "x", (1, 4, 4), size_multiple=multiple)


@pytest.mark.parametrize("name", ["ddim", "ancestral", "ode"])
@pytest.mark.parametrize("size", [(6, 10), [2, 4], 8])
def test_at_another_size_it_is_the_denoiser_of_that_size(name, size):
    """Of data whose pixels are independent: the samples of the exact denoiser of that shape, from the same noise."""
    drawn = diffusion.sample(gaussian_pixels(), 3, name, steps=6, seed=4, size=size)
    height, width = (size, size) if isinstance(size, int) else size
    reference = exact.Gaussian(torch.full((1, height, width), MEAN), STD, Cosine())
    torch.testing.assert_close(drawn, diffusion.sample(reference, 3, name, steps=6, seed=4), rtol=0, atol=2e-3)


def test_the_other_size_shares_the_weights_and_leaves_the_model_as_it_is():
    model = gaussian_pixels()
    other = model.at_size((6, 8))
    assert (other.shape, model.shape) == ((1, 6, 8), (1, 4, 4))
    assert other.network is model.network
    assert model.at_size(4) is model
    assert model.at_size([4, 4]) is model
    with count_evaluations(other) as count:
        diffusion.sample(other, 3, "ddim", steps=5)
    assert count.rows == 15
    assert diffusion.sample(Clipped(other), 2, "ddim", steps=2, size=(6, 8)).shape == (2, 1, 6, 8)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (gaussian_pixels(), 5, "size: found 5x5; this network takes multiples of 2, and 4x4, the size of its training"),
        (gaussian_pixels(), (6, 7), "size: found 6x7"),
        (gaussian_pixels(), (6, 6, 6), r"size: found \(6, 6, 6\); accepted: height and width"),
        (gaussian_pixels(), 0, "size: found 0"),
        (gaussian_pixels(), (4, -4), "accepted: height and width, or one number"),
        (gaussian_pixels(None), 6, "found 6x6; NetworkDenoiser takes images of its own size alone, 4x4"),
        (Clipped(gaussian_pixels()), 6, "found 6x6; Clipped takes images of its own size alone, 4x4"),
        (exact.Gaussian(torch.zeros(2), 1.0, Cosine()), 6, "data of shape .2,. have no height and width"),
    ],
)
def test_what_has_no_other_size_is_refused(model, size, message):
    with pytest.raises(UserError, match=message):
        diffusion.sample(model, 2, "ddim", steps=2, size=size)


UNET = "{name: unet, base_channels: 4, multipliers: [1, 1, 1], blocks: 1, attention: [2]}"
DIT = "{name: dit, width: 8, depth: 1, heads: 2}"


@pytest.mark.parametrize(("network", "multiple"), [(UNET, 4), (DIT, 2)])
def test_networks_say_which_sizes_they_take(network, multiple):
    config = parse_config(f"data: {{name: digits}}\nnetwork: {network}")
    model = DiffusionModel(build_denoiser(config, FACTS), config, FACTS)
    for size in ((multiple, 3 * multiple), 4 * multiple):
        drawn = model.sample(2, sampler="ddim", steps=2, size=size)
        assert drawn.shape == (2, *model.at_size(size).facts.shape)
    with pytest.raises(UserError, match=f"takes multiples of {multiple}, and 8x8"):
        model.sample(2, sampler="ddim", steps=2, size=4 * multiple + 1)


def test_likelihoods_and_encodings_are_of_the_other_size_too(tmp_path):
    model = DiffusionModel(build_denoiser(digits_config(tmp_path), FACTS), digits_config(tmp_path), FACTS)
    larger, images = model.at_size((6, 12)), torch.zeros(2, 1, 6, 12, dtype=torch.uint8)
    assert larger.log_likelihood(images, method="elbo", evaluations=4).dims == 72
    assert diffusion.encode(larger, images.float(), "ddim", steps=3).shape == images.shape
    with pytest.raises(UserError, match="needs floats of shape"):
        diffusion.encode(model, images.float(), "ddim", steps=3)


def test_points_and_autoencoders_have_their_own_size(tmp_path):
    facts, config = DataFacts("gaussians", (2,), None, 0), toy_config(tmp_path)
    points = DiffusionModel(build_denoiser(config, facts), config, facts)
    with pytest.raises(UserError, match=r"size: found 4; data of shape .2,. have no height and width"):
        points.sample(2, sampler="ddim", steps=2, size=4)
    config = autoencoder_config("vae", tmp_path)
    vae = LatentModel(build_vae(config, FACTS), config, FACTS)
    with pytest.raises(UserError, match="size: family 'vae' does not take it"):
        diffusion.sample(vae, 2, size=4)
    with pytest.raises(UserError, match="size: found 4; family 'vae' has images of its own size alone"):
        vae.at_size(4)


def test_a_picture_of_another_size_is_drawn_again(here, capsys):  # noqa: F811
    settings = ("--size", "6x10", "--sampler", "sde", "--steps", "3", "--label", "4", "--guidance", "2")
    line = (*settings, "--n", "3", "--out", "x.png")
    assert run_sample(capsys, *line)[0] == 0
    assert SampleRecord.read("x.png").settings["size"] == [6, 10]
    with Image.open("x.png") as picture:
        assert picture.text["size"] == "[6, 10]"
    assert "the same pixels as x.png" in run_sample(capsys, "--from", "x.png")[1]
    assert run_sample(capsys, *line[:-1], "x.npz")[0] == 0
    with np.load("x.npz") as arrays:
        assert arrays["images"].shape == (3, 6, 10)


def test_images_are_filled_in_and_encoded_at_the_other_size(here, capsys):  # noqa: F811
    pixels = np.full((12, 12), 200, dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    Image.fromarray(np.triu(pixels)).save("mask.png")
    common = ("--size", "12", "--steps", "3")
    asked = ("--inpaint", "image.png", "--mask", "mask.png", "--posterior", "pseudo-inverse", "--n", "2")
    assert run_sample(capsys, *common, *asked, "--out", "x.npz")[0] == 0
    with np.load("x.npz") as arrays:
        kept = arrays["images"][:, ~np.triu(np.ones((12, 12), bool))]
    assert np.abs(kept.astype(int) - 200).max() < 40
    assert run_sample(capsys, *common, "--sampler", "ddim", "--encode", "image.png", "--out", "noise.npz")[0] == 0
    with np.load("noise.npz") as arrays:
        assert arrays["noise"].shape == (1, 1, 12, 12)
    assert run_sample(capsys, *common, "--animate", "--n", "2", "--sampler", "ddim", "--out", "x.gif")[0] == 0
    guide = ("--guide", "digits-0001", "--guidance", "2", "--n", "2", "--out", "y.npz")
    assert run_sample(capsys, *common, *guide)[0] == 0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("12x", "--size: found '12x'; must be pixels, 16, or height x width, 12x16"),
        ("0", "--size: found '0'; must be pixels"),
        ("8x8x8", "--size: found '8x8x8'; must be pixels"),
        ("9", "--size: found 9x9; this network takes multiples of 2, and 8x8, the size of its training"),
    ],
)
def test_bad_sizes_are_one_line(tmp_path, monkeypatch, capsys, size, message):
    monkeypatch.chdir(tmp_path)
    config = digits_config(tmp_path, "network.multipliers=[1,1]")
    make_run(tmp_path / "runs", config, FACTS)
    before = files(tmp_path)
    code, _, err = run_sample(capsys, "--size", size)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}"), err
    assert files(tmp_path) == before


def test_what_is_tuned_to_one_size_is_not_used_for_another(here, monkeypatch):  # noqa: F811
    """Moments are kept beside the model's file for the size of training alone."""
    model = load("runs/digits-0001")
    larger = model.at_size(12)
    assert model.at_size((12, 12)) is larger  # with what is tuned to it
    other = larger.moments
    assert not list(here.rglob("*.moments.json"))
    own = model.moments
    assert len(list(here.rglob("*.moments.json"))) == 1
    assert load("runs/digits-0001").at_size(12).moments.values == other.values != own.values
    wrapped = larger.around(larger.denoiser)
    assert wrapped.cache_at == larger.cache_at == "", "in memory alone"
    assert model.cache_at == model.source
