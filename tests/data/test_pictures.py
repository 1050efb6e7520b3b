"""Pictures show what they are given: pixel values, places in a grid, text in the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.data import load_toy, pictures
from diffusion.errors import UserError


def test_the_range_of_images_becomes_that_of_bytes():
    x = torch.tensor([-2.0, -1.0, 0.0, 1 / 255, 1.0, 3.0])
    assert pictures.to_bytes(x).tolist() == [0, 0, 128, 128, 255, 255]
    levels = torch.arange(256)
    assert torch.equal(pictures.to_bytes(levels / 127.5 - 1).long(), levels)
    assert pictures.to_bytes(x.double().requires_grad_()).dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_each_image_in_its_place(channels):
    values = torch.linspace(-1, 1, 7)
    x = values.reshape(7, 1, 1, 1).expand(7, channels, 8, 8)
    pixels = np.asarray(pictures.grid(x))
    assert pixels.ndim == (2 if channels == 1 else 3)
    cell = 64 + 2
    assert pixels.shape[:2] == (2 * cell - 2, 4 * cell - 2), "seven images: two rows of four, each enlarged to 64"
    for i, value in enumerate(pictures.to_bytes(values).tolist()):
        row, column = divmod(i, 4)
        block = pixels[row * cell : row * cell + 64, column * cell : column * cell + 64]
        assert block.min() == block.max() == value
    assert (pixels[cell:, 3 * cell :] == 255).all(), "empty places are background"
    assert (pixels[64:66] == 255).all(), "and so are the gaps"


def test_a_grid_leaves_no_place_empty_where_its_number_of_images_allows():
    layouts = {n: (-(-n // pictures.columns_for(n)), pictures.columns_for(n)) for n in range(1, 400)}
    usual = {1: (1, 1), 2: (1, 2), 8: (2, 4), 10: (2, 5), 12: (3, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 200: (10, 20)}
    assert {n: layouts[n] for n in usual} == usual
    for n, (rows, columns) in layouts.items():
        assert rows <= columns <= 3 * rows
        whole = [c for c in range(1, n + 1) if n % c == 0 and n // c <= c <= 3 * (n // c)]
        assert not whole or (rows, columns) == (n // min(whole), min(whole)), n
        assert 0 <= rows * columns - n < rows, n


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_are_not():
    x = torch.rand(1, 1, 4, 4) * 2 - 1
    pixels = np.asarray(pictures.grid(x))
    assert np.array_equal(pixels, np.kron(pictures.to_bytes(x)[0, 0].numpy(), np.ones((16, 16), np.uint8)))
    assert np.asarray(pictures.grid(torch.zeros(1, 3, 100, 80))).shape == (100, 80, 3)


def test_one_image_keeps_its_size_and_its_orientation():
    x = torch.full((3, 2, 5), -1.0)
    x[0, 0, 4] = 1.0
    pixels = np.asarray(pictures.from_bytes(pictures.to_bytes(x).numpy()))
    assert pixels.shape == (2, 5, 3)
    assert np.argwhere(pixels).tolist() == [[0, 4, 0]]


def test_channels_that_no_eye_sees_stand_beside_the_others():
    bands = np.arange(63, dtype=np.uint8).reshape(7, 3, 3)
    two, four, seven = (np.asarray(pictures.from_bytes(bands[:count])) for count in (2, 4, 7))
    assert np.array_equal(two, np.concatenate(list(bands[:2]), 1))
    assert np.array_equal(four[:, :3], bands[:3].transpose(1, 2, 0)), "three are colour"
    assert np.array_equal(four[:, 3:], np.stack([bands[3]] * 3, 2))
    rows = [np.concatenate(row, 1) for row in (bands[:4], [*bands[4:], np.full((3, 3), 255)])]
    assert np.array_equal(seven, np.concatenate(rows)), "tiles, and the rest is white"
    assert np.asarray(pictures.grid(torch.zeros(1, 7, 30, 30))).shape == (60, 120)


def test_a_png_holds_its_text(tmp_path):
    path = tmp_path / "deep" / "x.png"
    pictures.save_samples(path, torch.zeros(3, 1, 8, 8), text={"settings": '{"seed": 3}'})
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.text == {"settings": '{"seed": 3}'}


def test_the_path_has_a_pair_of_rows_for_each_image():
    times = [1.0, 0.5, 0.0]
    states = [torch.full((2, 1, 8, 8), value) for value in (30.0, 0.5, -1.0)]  # the first beyond the range
    x_hats = [torch.full((2, 1, 8, 8), value) for value in (0.0, 0.2, -1.0)]
    pixels = np.asarray(pictures.path_picture(states, times, x_hats))
    cell = 66
    assert pixels.shape == (4 * cell - 2, 3 * cell - 2)
    for row in range(4):
        values = [255, 191, 0] if row % 2 == 0 else [128, 153, 0]
        found = pixels[row * cell + 10, 10::cell].astype(int)
        assert np.abs(found - values).max() <= 1, row


def test_a_path_needs_one_of_each_a_time():
    with pytest.raises(UserError, match="states, times, x_hats: found 2, 1 and 2"):
        pictures.path_picture([torch.zeros(1, 1, 4, 4)] * 2, [1.0], [torch.zeros(1, 1, 4, 4)] * 2)


def test_points_are_shown_beside_their_density(tmp_path):
    toy = load_toy("moons")
    points = toy.draw(200)
    for given in (toy, None):
        path = tmp_path / f"{given is None}.png"
        pictures.save_samples(path, points, given)
        with Image.open(path) as picture:
            assert picture.size == ((400 if given is None else 800), 430)
            assert len(np.unique(np.asarray(picture))) > 10


@pytest.mark.parametrize("shape", [(1, 16), (3, 16), (5,), (1,), (2,), (1, 4, 6, 6), (3, 4, 6, 6), (1, 8, 8)])
def test_numbers_of_any_shape_and_units_are_shown(shape):
    """The picture of images is the same whatever the units: it is of their own range."""
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0))
    plain = np.asarray(pictures.samples_picture(x, continuous=True))
    assert plain.ndim in (2, 3)
    assert len(np.unique(plain)) > 10
    if shape in ((5,), (3, 16)):  # charts have their units on an axis
        assert len(np.unique(np.asarray(pictures.samples_picture(1e6 * x, continuous=True)))) > 10
    if len(shape) > 2:
        assert np.array_equal(plain, np.asarray(pictures.samples_picture(1e6 * x, continuous=True)))
        assert plain.min() == 0, "the lowest hundredth is black"
        assert not np.array_equal(plain, np.asarray(pictures.samples_picture(-x, continuous=True)))


def test_a_row_of_slices_is_a_volume():
    """Slice k of volume n is at row n and column k, in order of depth."""
    depth, n = 4, 3
    values = torch.arange(n * depth, dtype=torch.float32).reshape(n, 1, depth, 1, 1).expand(n, 1, depth, 8, 8)
    pixels = np.asarray(pictures.samples_picture(values, continuous=True)).astype(int)
    middles = pixels[32::66, 32::66]
    assert middles.shape == (n, depth)
    assert (np.diff(middles.flatten()) > 0).all()


def test_the_density_picture_shows_truth_model_and_samples():
    toy = load_toy("gaussians")
    asked = []

    def model(x):
        asked.append(x)
        return toy.log_prob(x)

    image = np.asarray(pictures.density_picture(toy, model, toy.draw(50), side=20)).astype(int)
    assert asked[0].shape == (400, 2)
    assert image.shape == (430, 1200, 3)
    # of a perfect model the first two panels are the same below their titles, but for a pixel of layout
    truth, found = image[60:360, 50:370], image[60:360, 450:770]
    best = min(np.abs(truth - np.roll(found, shift, 1)).mean() for shift in range(-12, 13))
    assert best < 25
    assert np.abs(truth - image[60:360, 850:1170]).mean() > 60


def test_the_picture_of_codes_shows_histograms_and_quantiles():
    normal = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    near, far = (np.asarray(pictures.codes_picture({"train": z})).astype(int) for z in (normal, normal.exp()))
    assert near.shape == (430, 800, 3)
    straightness = []
    for image in (near, far):
        panel = image[:, 450:]
        row, column = np.nonzero(panel[..., 2] > panel[..., 0] + 60)  # the quantiles, in blue
        straightness.append(-np.corrcoef(row, column)[0, 1])
    assert straightness[0] > 0.99, "the quantiles of normal codes are a line"
    assert straightness[1] < 0.97
