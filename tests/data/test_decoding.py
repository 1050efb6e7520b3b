"""Image files of every mode to uint8 tensors, against values computed by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.data.files import decoding
from diffusion.data.files.decoding import ImageFile, decode, decode_all
from diffusion.data.files.fitting import resize_and_crop, resize_arrays
from diffusion.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", name: str = "a.png", **options: object) -> ImageFile:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return ImageFile(name, f"folder/{name}", buffer.getvalue)


def raw(data: bytes) -> ImageFile:
    return ImageFile("bad.png", "folder/bad.png", lambda: data)


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7


def test_grey_and_colour_are_lossless() -> None:
    assert (decode(encoded(Image.fromarray(GREY)), None) == GREY).all()
    assert (decode(encoded(Image.fromarray(COLOUR)), None) == COLOUR).all()


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(values), kind), None)
        assert found.tolist() == [[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]]


def test_unknown_ranges_are_refused() -> None:
    for values in (np.ones((2, 2), np.float32), np.full((2, 2), 70_000, np.int32)):
        with pytest.raises(UserError, match="no known range"):
            decode(encoded(Image.fromarray(values), "TIFF"), None)


def test_transparency_is_composited_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], dtype=np.uint8)
    found = decode(encoded(Image.fromarray(rgba)), None)
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]  # 51 = 255 / 5
    grey_alpha = np.array([[[10, 255], [10, 0], [100, 51]]], dtype=np.uint8)
    assert decode(encoded(Image.fromarray(grey_alpha)), None).tolist() == [[10, 255, 224]]


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image), None).tolist() == [[[1, 2, 3], [200, 100, 50]]]
    assert decode(encoded(image, transparency=0), None).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_one_bit_and_cmyk() -> None:
    assert decode(encoded(Image.new("1", (2, 2), 1)), None).tolist() == [[255, 255], [255, 255]]
    assert decode(encoded(Image.new("CMYK", (8, 8)), "JPEG"), None).shape == (8, 8, 3)


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    found = decode(encoded(Image.fromarray(GREY), exif=exif), None)
    assert (found == np.rot90(GREY, -1)).all()


def test_channels_of_a_mixed_set() -> None:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    assert decode_all([encoded(grey)] * 3).images.shape == (3, 1, 3, 4)
    for files in ([encoded(grey), encoded(colour)], [encoded(colour), encoded(grey)]):
        images = decode_all(files).images
        assert images.shape == (2, 3, 3, 4)
        greys = images[0] if files[0].read() == encoded(grey).read() else images[1]
        assert greys.equal(torch.from_numpy(GREY).expand(3, 3, 4))


@pytest.mark.parametrize("small", [0.0, 1e9], ids=["in threads", "in one"])
def test_order_and_progress_over_several_chunks(monkeypatch: pytest.MonkeyPatch, small: float) -> None:
    monkeypatch.setattr(decoding, "_SMALL", small)
    files = [encoded(Image.new("L", (1, 1), i % 256)) for i in range(1500)]
    calls: list[tuple[int, int]] = []
    images = decode_all(files, progress=lambda done, n: calls.append((done, n))).images
    assert images.flatten().equal(torch.arange(1500).remainder(256).to(torch.uint8))
    assert calls == [(16, 1500), (1040, 1500), (1500, 1500)]


def test_differing_sizes_name_two_files_and_the_way_out() -> None:
    files = [
        encoded(Image.new("L", (4, 3)), name="a.png"),
        encoded(Image.new("L", (4, 3)), name="b.png"),
        encoded(Image.new("L", (5, 2)), name="c.png"),
    ]
    with pytest.raises(UserError, match=r"folder/a.png is 4 x 3, folder/c.png is 5 x 2 .*data.size=") as error:
        decode_all(files)
    assert "\n" not in str(error.value)
    assert decode_all(files, size=2).images.shape == (3, 1, 2, 2)


def test_resize_keeps_the_centre() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (8, 24), dtype=np.uint8)
    expected = Image.fromarray(wide).resize((12, 4), Image.Resampling.BICUBIC).crop((4, 0, 8, 4))
    assert (np.asarray(resize_and_crop(Image.fromarray(wide), 4)) == np.asarray(expected)).all()
    tall = np.asarray(resize_and_crop(Image.fromarray(wide.T.copy()), 4))
    assert abs(tall.T.astype(int) - np.asarray(expected)).max() <= 1  # the passes over rows and columns round apart


def test_resize_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    small = np.asarray(resize_and_crop(Image.fromarray(stripes), 8)).astype(int)
    assert abs(small - 127.5).max() < 20


def test_a_narrow_strip_stays_small() -> None:
    assert resize_and_crop(Image.new("L", (100_000, 1)), 512).size == (512, 512)


def test_resized_arrays_stay_within_their_levels() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :, 4:] = 16
    assert resize_arrays(images, 13, levels=17).max() == 16
    assert resize_arrays(images, 8, levels=17) is images
    colour = torch.from_numpy(COLOUR[:3, :3].copy()).permute(2, 0, 1)[None]
    larger = resize_arrays(colour, 6, levels=256)
    assert larger.shape == (1, 3, 6, 6)
    expected = np.asarray(resize_and_crop(Image.fromarray(COLOUR[:3, :3].copy()), 6))
    assert (larger[0].permute(1, 2, 0).numpy() == expected).all()


def test_truncated_and_foreign_files_are_named() -> None:
    good = encoded(Image.effect_noise((64, 64), 50)).read()
    for data in (good[: len(good) // 2], b"", b"hello", good[:40] + b"\0" * 200):
        with pytest.raises(UserError, match=r"folder/bad.png: cannot be read as an image") as error:
            decode(raw(data), None)
        assert "\n" not in str(error.value)
    jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG").read()
    with pytest.raises(UserError, match=r"folder/bad.png"):
        decode_all([raw(jpeg[: len(jpeg) // 2])])


@pytest.mark.parametrize("side", [12_000, 60_000])  # above the limit of Pillow's warning, and of its error
def test_enormous_images_are_refused_before_they_are_unpacked(side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match=r"folder/bad.png: the image has more than .* pixels"):
        decode_all([raw(bomb)])
