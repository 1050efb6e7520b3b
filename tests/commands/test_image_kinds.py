"""Images of several channels and of more than 8 bits wherever a command reads or writes one: as the model has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import make_run
from PIL import Image
from tiny_configs import digits_config

import diffusion
from diffusion.commands import ood
from diffusion.commands.app import command, sample
from diffusion.commands.demo import images as demo_images
from diffusion.commands.sample.control import image_for, levels_for
from diffusion.data import ImageData
from diffusion.data.files.alike import Alike
from diffusion.errors import UserError
from diffusion.models.build import DataFacts
from diffusion.models.load import load

RANDOM = np.random.default_rng(0)
QUICK = ("--n", "2", "--steps", "2", "--sampler", "ddim", "--device", "cpu")


def run_of(channels, levels=256, *overrides):
    """A run with random weights, of images of 8 x 8 in the working folder."""
    config = digits_config(Path.cwd(), "data.name=folder", "data.path=x", *overrides)
    return make_run(Path("runs"), config, DataFacts("folder", (channels, 8, 8), levels, 0))


def picture(channels, name="x.png", bits=8):
    shape = (8, 8) if channels == 1 else (8, 8, channels)
    pixels = RANDOM.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(pixels).save(name)
    return torch.from_numpy(pixels.astype(np.float32)).reshape(8, 8, channels).permute(2, 0, 1)[None]


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("option", ["--edit", "--encode", "--interpolate", "--inpaint"])
def test_an_image_has_the_channels_of_the_model(here, capsys, channels, option):
    run = run_of(channels)
    pixels = picture(channels)
    assert torch.allclose(image_for(load(run), option, "x.png"), pixels / 127.5 - 1.0)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 32 * 255).save("mask.png")
    more = {"--interpolate": ["x.png"], "--inpaint": ["--mask", "mask.png", "--posterior", "repaint"]}.get(option, [])
    if option == "--encode":
        more = ["--out", "noise.npz"]
    assert command(sample, ["--run", str(run), *QUICK, option, "x.png", *more]) == 0, capsys.readouterr().err
    for other in {1, 3} | {6 - channels}:
        picture(other, "other.png")
        assert command(sample, ["--run", str(run), *QUICK, option, "other.png", *more]) == 2
        assert capsys.readouterr().err == f"error: {option}: other.png has {other} channels; needs {channels}\n"


def test_an_image_of_more_bits_is_read_whole(here):
    pixels = picture(1, bits=12)
    for bits, overrides in ((12, ("data.bits=12",)), (16, ())):
        model = load(run_of(1, 2**bits, "data.levels=all", *overrides))
        wanted = pixels / (2**bits - 1) * 2.0 - 1.0
        assert torch.allclose(image_for(model, "--edit", "x.png"), wanted, atol=1e-6)
    model = load(run_of(1, 256, "data.bits=12"))
    assert torch.allclose(image_for(model, "--edit", "x.png"), (pixels / 16).floor() / 127.5 - 1.0, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_bits_of_an_image_are_those_of_all_its_levels(here, monkeypatch, bits):
    monkeypatch.setattr(demo_images, "EVALUATIONS", 2)
    given = () if bits == 8 else ("data.levels=all", f"data.bits={bits}")
    model, levels = load(run_of(1, 2**bits, *given)), picture(1, bits=bits).int()
    assert torch.equal(levels_for(model, "image", "x.png").int(), levels)
    expected = diffusion.log_likelihood(model, levels, method="elbo", evaluations=2, seed=3)
    assert demo_images.bits(model, "x.png", seed=3).bits_per_dim == float(expected.bits_per_dim[0])


def test_levels_that_no_file_holds_are_refused(here):
    picture(1, bits=16)
    with pytest.raises(UserError, match="levels: found 1000; image files hold a power of two, as 1024"):
        image_for(load(run_of(1, 1000)), "--edit", "x.png")


@pytest.mark.parametrize("target", ["folder/", "x.zip"])
def test_pictures_that_cannot_hold_all_channels_are_no_target(here, capsys, target):
    run = run_of(4)
    assert command(sample, ["--run", str(run), *QUICK, "--out", target]) == 2
    assert "samples of 4 channels are kept whole in x.npz, x.npy" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["runs"]
    assert command(sample, ["--run", str(run), *QUICK, "--out", "x.npz"]) == 0, capsys.readouterr().err
    with np.load("x.npz") as arrays:
        assert arrays["images"].shape == (2, 8, 8, 4)


def native(shape, levels):
    pixels = torch.zeros(3, *shape, dtype=torch.uint8 if levels <= 256 else torch.int32)
    return ImageData("mine", pixels, None, pixels, None, pixels, None, levels, 0, False, {})


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_other_images_come_as_the_model_has_its_own(here):
    def foreign(make):
        (here / "other").mkdir()
        for i in range(4):
            make(f"other/{i}.png")

    foreign(lambda name: picture(4, name))
    found = ood.load("other", native((4, 8, 8), 256), "test", None)
    assert found.images.shape == (4, 4, 8, 8)
    found = ood.load("other", native((3, 6, 12), 256), "test", None)
    assert found.images.shape == (4, 3, 6, 12), "not a square"
    for channels in (2, 5):
        with pytest.raises(UserError, match="--ood: 'other' has shape"):
            ood.load("other", native((channels, 8, 8), 256), "test", None)
    with pytest.raises(UserError, match="--ood: 'other' has levels 256; the model's images have 65536"):
        ood.load("other", native((3, 8, 8), 2**16), "test", None)
    for path in (here / "other").iterdir():
        path.unlink()
    (here / "other").rmdir()
    foreign(lambda name: picture(1, name, 16))
    found = ood.load("other", native((1, 8, 8), 2**16), "test", None)
    assert found.images.dtype == torch.int32
    assert int(found.images.max()) > 2**15


def test_files_are_read_alike_whatever_the_levels():
    assert Alike.of(1, 17) == Alike.of(3, 256) == Alike()
    assert Alike.of(3, 256, 12) == Alike(bits=12)
    assert Alike.of(5, 4096, 12) == Alike(bits=12, whole=True, every=True)
    assert [Alike.of(1, levels).most for levels in (2, 256, 1024, 65536)] == [255, 255, 1023, 65535]
