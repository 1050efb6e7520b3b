"""Sizes: one side, or height and width; resized and cut, resized alone, or cut alone."""

import numpy as np
import pytest
from PIL import Image

from diffusion.config import load_config
from diffusion.data import load_images
from diffusion.data.files.fitting import Fit
from diffusion.errors import UserError


def ramps(height, width):
    """A picture whose red is the row and whose green is the column, from 0 to 1 over the picture."""
    rows, columns = (np.linspace(0, 255, side) for side in (height, width))
    return np.stack(np.broadcast_arrays(rows[:, None], columns, 128.0), -1).round().astype(np.uint8)


@pytest.fixture
def wide(tmp_path):
    for i in range(4):
        Image.fromarray(ramps(40, 80)).save(tmp_path / f"{i}.png")
    return tmp_path


def first(folder, **options):
    with pytest.warns(UserWarning, match="training images, too, to the bit"):  # all four are one
        data = load_images("folder", folder, **options)
    return data, data.train[0].permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("size", ["20x20", (20, 20), 20])
def test_one_side_is_both(wide, size):
    data, x = first(wide, size=size)
    assert data.shape == (3, 20, 20)
    assert data.provenance["resize"] == "shorter side to 20 (bicubic, antialiased), centre crop"
    assert abs(x[:, 0, 1].mean() - 64) < 8, "a quarter is cut off on the left"
    assert abs(x[:, -1, 1].mean() - 191) < 8
    assert x[0, :, 0].max() < 12


def test_stretched_images_keep_all_that_is_in_them(wide):
    data, x = first(wide, size="20x10", fit="stretch")
    assert data.shape == (3, 20, 10)
    assert x[:, 0, 1].max() < 20
    assert x[:, -1, 1].min() > 235
    assert x[0, :, 0].max() < 12
    assert data.provenance["resize"] == "to 20 x 10 (height x width), bicubic, antialiased, stretched"


def test_a_centre_is_cut_out_as_it_is(wide):
    _, x = first(wide, size="10x30", fit="center")
    assert np.array_equal(x, ramps(40, 80)[15:25, 25:55])
    with pytest.raises(UserError, match=r"80 x 40 is smaller than the 30 x 60 to cut out"):
        load_images("folder", wide, size="60x30", fit="center")


@pytest.mark.parametrize(("height", "width"), [(10, 20), (10, 40), (20, 10), (13, 17)])
def test_cropped_images_keep_their_middle_and_their_shape(wide, height, width):
    """What is left of the picture has the asked shape, in the middle: its ends are read off the ramps."""
    _, x = first(wide, size=f"{height}x{width}")
    assert x.shape[:2] == (height, width)
    share = (40 * width / height) / 80
    rows, columns = (1.0, share) if share <= 1 else (1 / share, 1.0)
    for values, part in ((x[:, width // 2, 0], rows), (x[height // 2, :, 1], columns)):
        assert abs(values.mean() - 127.5) < 2, "in the middle"
        step = 255 * part / len(values)
        assert abs((values[-1] - values[0]) - step * (len(values) - 1)) < 8


def test_a_square_is_what_one_number_was(wide):
    """To the bit, and under the same name in a cache."""
    image = Image.fromarray(ramps(40, 80))
    box = (20.0, 0.0, 60.0, 40.0)
    expected = image.resize((7, 7), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(np.asarray(Fit(7, 7)(image)), np.asarray(expected))
    assert Fit(7, 7).key == 7
    assert len({Fit(7, 7).key, Fit(7, 8).key, Fit(7, 7, "stretch").key}) == 3


def test_digits_of_another_shape():
    assert load_images("digits", size="12x16").shape == (1, 12, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.size=0"], "data.size: found 0; must be an integer at least 1, or height x width"),
        (["data.size=32x"], "data.size: found '32x'; must be"),
        (["data.size=100000"], "data.size: found 100000; must be 67,108,864 pixels at most, e.g. 8192"),
        (["data.size=1x99999999"], "data.size: found '1x99999999'; must be"),
        (["data.size=99999x99999"], "data.size: found '99999x99999'; must be 67,108,864 pixels at most"),
        (["data.size=big"], "data.size: found 'big'; must be"),
        (["data.fit=stretch"], "data.fit: found 'stretch'; it goes with a data.size"),
        (["data.size=8", "data.fit=strech"], "Did you mean 'stretch'"),
        (["data.name=moons", "data.size=8x8"], "data.size: found '8x8'; 'moons' does not take it"),
    ],
)
def test_what_is_no_size_is_refused_in_one_line(overrides, message):
    with pytest.raises(UserError) as error:
        load_config("digits", overrides)
    assert message in str(error.value)


def test_sizes_of_a_configuration():
    assert load_config("digits", ["data.size=32"]).data.size == 32
    assert load_config("digits", ["data.size=32x48"]).data.size == "32x48"


def test_images_that_no_memory_holds_are_refused_before_they_are_made():
    with pytest.raises(UserError, match=r"data\.size: 1,797 images of 1 x 99999 x 99999: 16,7.. GiB of memory"):
        load_images("digits", size=99999)


def test_half_a_size_is_refused():
    with pytest.raises(UserError, match=r"data\.size: found \(None, 8\); must be a whole number"):
        load_images("digits", size=(None, 8))
