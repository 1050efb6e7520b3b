"""Images of up to 65,536 levels: read whole, counted whole, and written whole."""

import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_configs import digits_config

import diffusion
from diffusion.data import DataNote, load_images
from diffusion.data.files.decoding import ImageFile, decode
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.likelihood.dequantization import Dequantizer
from diffusion.models.build import build_data
from diffusion.schedules import VP

N, SIDE = 12, 8


def levels(*shape, bits=16):
    """Levels of which the least and the greatest occur."""
    values = np.random.default_rng(0).integers(0, 2**bits, shape).astype(np.uint16)
    values.flat[0], values.flat[-1] = 0, 2**bits - 1
    return values


def deep_png(values):
    """A PNG of 16 bits a channel, (H, W, C) with C = 1 to 4: Pillow writes grey ones alone."""
    height, width, channels = values.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def read(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_images("folder", folder, levels="all", **options)
    return data, torch.cat([data.train, data.validation, data.test])


def by_name(folder, images, save):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        save(folder / f"{i:02d}", image)


def rows_of(parts, images):
    """The images in the order of the parts, found by their content: each once."""
    known = {image.astype(np.int64).tobytes(): i for i, image in enumerate(images)}
    return [known[part.numpy().astype(np.int64).tobytes()] for part in parts]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_of_sixteen_bits_is_read_whole(tmp_path, kind):
    images = levels(N, SIDE, SIDE)
    by_name(tmp_path / "x", images, lambda path, image: Image.fromarray(image).save(f"{path}.{kind}"))
    data, parts = read(tmp_path / "x")
    assert (data.levels, data.train.dtype) == (65536, torch.int32)
    assert sorted(rows_of(parts[:, 0], images)) == list(range(N))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_sixteen_bits_is_read_whole_in_colour_too(tmp_path, channels):
    images = levels(N, SIDE, SIDE, channels)
    by_name(tmp_path / "x", images, lambda path, image: path.with_suffix(".png").write_bytes(deep_png(image)))
    data, parts = read(tmp_path / "x")
    assert data.shape == (channels, SIDE, SIDE)
    assert sorted(rows_of(parts, images.transpose(0, 3, 1, 2))) == list(range(N))


def test_transparency_is_on_white(tmp_path):
    images = levels(N, SIDE, SIDE, 4)
    by_name(tmp_path / "x", images, lambda path, image: path.with_suffix(".png").write_bytes(deep_png(image)))
    _, parts = read(tmp_path / "x")
    share = images[..., 3:] / 65535
    expected = np.rint(images[..., :3] * share + 65535 * (1 - share)).transpose(0, 3, 1, 2)
    assert sorted(rows_of(parts, expected)) == list(range(N))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_eight_bits(tmp_path, orientation):
    """The same picture with its tag, in 8 bits through Pillow and in 16 through the other reader."""
    picture = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", exif=exif)
    with_tag = buffer.getvalue()
    at = with_tag.index(b"eXIf") - 4
    tag = with_tag[at : at + 12 + struct.unpack(">I", with_tag[at : at + 4])[0]]
    deep = deep_png(picture.astype(np.uint16) * 257)
    deep = deep[:33] + tag + deep[33:]
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(deep)
    _, parts = read(tmp_path)
    eight = decode(ImageFile("x", "x", lambda: with_tag), None)
    assert np.array_equal(parts[0].permute(1, 2, 0).numpy(), eight.astype(int) * 257)


def test_fewer_bits_are_fewer_levels_and_eight_are_stretched(tmp_path):
    images = levels(N, SIDE, SIDE, bits=12)
    by_name(tmp_path / "x", images, lambda path, image: Image.fromarray(image).save(f"{path}.png"))
    data, parts = read(tmp_path / "x", bits=12)
    assert data.levels == 4096
    assert sorted(rows_of(parts[:, 0], images)) == list(range(N))
    eight = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE), np.uint8)
    eight.flat[:2] = 0, 255
    Image.fromarray(eight).save(tmp_path / "x" / "eight.png")
    data, parts = read(tmp_path / "x", bits=12)
    expected = np.rint(eight * (4095 / 255))[None]
    assert any(np.array_equal(part.numpy(), expected) for part in parts)


def test_arrays_of_eight_bits_have_no_more_levels(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE), np.uint8))
    with pytest.raises(UserError, match=r"no more than 8 bits; leave out data\.levels=all"):
        load_images("folder", tmp_path / "x.npy", levels="all")


def test_arrays_of_which_no_value_uses_the_upper_bits(tmp_path):
    """As they are stored and not as they are resized; a run that was trained on them stays what it was."""
    images = levels(N, SIDE, SIDE, bits=12)
    np.savez(tmp_path / "x.npz", images=images)
    config = digits_config(tmp_path, "data.name=folder", f"data.path={tmp_path / 'x.npz'}", "data.levels=all")
    with pytest.raises(UserError, match=r"no value above 4095 of 65535: data\.bits=12 takes"):
        build_data(config)
    assert build_data(config, trained=True).facts.levels == 65_536
    images[0, 0, 0] = 65_535
    np.savez(tmp_path / "x.npz", images=images)
    with pytest.warns(DataNote, match=r"no value above \d+ of 65535: the images are dark$"):
        found = load_images("folder", tmp_path / "x.npz", levels="all", size=SIDE // 2)
    assert max(int(part.max()) for part in (found.train, found.validation, found.test)) < 2**15


def test_arrays_of_sixteen_bits(tmp_path):
    images = levels(N, SIDE, SIDE, 3)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(N) % 2)
    data, parts = read(tmp_path / "x.npz")
    assert (data.levels, data.num_classes) == (65536, 2)
    assert sorted(rows_of(parts, images.transpose(0, 3, 1, 2))) == list(range(N))
    np.save(tmp_path / "y.npy", np.array([-1, 3], np.int64).repeat(32).reshape(4, 4, 4))
    with pytest.raises(UserError, match=r"-1 to 3; data\.levels=all takes whole numbers from 0 to 65,535"):
        read(tmp_path / "y.npy")


def test_the_cache_keeps_all_levels_and_other_ones_apart(tmp_path):
    images = levels(N, SIDE, SIDE)
    by_name(tmp_path / "x", images, lambda path, image: Image.fromarray(image).save(f"{path}.png"))
    for _ in range(2):
        _, parts = read(tmp_path / "x", cache=tmp_path / "cache")
        assert sorted(rows_of(parts[:, 0], images)) == list(range(N))
    assert load_images("folder", tmp_path / "x", cache=tmp_path / "cache").levels == 256


def test_resizing_keeps_the_levels(tmp_path):
    """A ramp of 16 bits, halved: the means of two neighbours, not those of 8 bits."""
    ramp = np.linspace(0, 65535, 16).round().astype(np.uint16)[None].repeat(16, 0)
    by_name(tmp_path / "x", [ramp] * 4, lambda path, image: Image.fromarray(image).save(f"{path}.png"))
    _, parts = read(tmp_path / "x", size=8)
    means = ramp[0].reshape(8, 2).mean(1)
    assert np.abs(parts[0, 0, 4, 2:-2].numpy() - means[2:-2]).max() <= 1, "of a straight line, away from its ends"
    assert len(np.unique(parts[0, 0, 4].numpy() % 256)) > 4


def test_what_cannot_be_whole_is_refused(tmp_path):
    eight = np.random.default_rng(3).integers(0, 256, (N, SIDE, SIDE), np.uint8)
    by_name(tmp_path / "x", eight, lambda path, image: Image.fromarray(image).save(f"{path}.png"))
    with pytest.raises(UserError, match=r"no file of .* has more than 8 bits; leave it out"):
        read(tmp_path / "x")
    (tmp_path / "bad.png").write_bytes(deep_png(levels(SIDE, SIDE, 3))[:-40])
    with pytest.raises(UserError, match=r"bad\.png: cannot be read as an image") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"levels: found 65537; accepted: 2 to 65536"):
        Dequantizer(65537)


def test_a_uniform_low_byte_is_eight_bits_to_the_last_digit():
    """Level 256 k + l of 16 bits, dequantised at u, is level k of 8 bits at (l + u) / 256: log 256 apart."""
    high, low = torch.arange(256, dtype=torch.int32)[:, None], torch.arange(256, dtype=torch.int32)
    sixteen, eight = Dequantizer(65536), Dequantizer(256)
    u = torch.rand(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = sixteen.dequantize(256 * high + low, u)
    torch.testing.assert_close(places, eight.dequantize(high.expand(256, 256), (low + u) / 256), rtol=0, atol=1e-15)
    assert torch.equal(sixteen.quantize(places), 256 * high + low)
    d = 192
    assert (eight.log_jacobian(d) - sixteen.log_jacobian(d)) / (d * math.log(2)) == pytest.approx(8, abs=1e-13)


@pytest.mark.parametrize("method", ["ode", "elbo", "immse"])
def test_a_uniform_low_byte_costs_eight_bits(method):
    """Of images of 16 bits whose upper 8 are those of a model and whose lower 8 are noise: bits/dim differ by 8."""
    generator = torch.Generator().manual_seed(1)
    model = Gaussian(torch.zeros(1, 2, 2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64), VP())
    high = Dequantizer(256).quantize(0.4 * torch.randn(96, 1, 2, 2, generator=generator, dtype=torch.float64)).int()
    low = torch.randint(0, 256, high.shape, generator=generator, dtype=torch.int32)
    options = {"ode": {"trace": "exact", "draws": 4}, "elbo": {"evaluations": 64}, "immse": {"evaluations": 64}}[method]
    eight = diffusion.log_likelihood(model, high, method, levels=256, **options)
    sixteen = diffusion.log_likelihood(model, 256 * high + low, method, levels=65536, **options)
    gap = sixteen.bits_per_dim - eight.bits_per_dim
    assert abs(float(gap.mean()) - 8.0) < 4 * float(gap.std()) / math.sqrt(len(gap))
    assert float(gap.std()) / math.sqrt(len(gap)) < 0.02
