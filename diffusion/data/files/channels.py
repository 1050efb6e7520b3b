"""The pixels of one image: 8 bits of them or all, as people see them or with all channels that its file has.

A file's channels are taken as they are stored: grey (1), grey and opacity (2), colour (3), colour and opacity or CMYK
(4), the bands of a TIFF (up to 32). Palettes become the colours that they stand for. Pillow reads TIFFs of up to four
bands, and of 16 bits in colour the high bytes; others are read by tifffile, an extra (`tiff`).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ...errors import library

MOST_CHANNELS = 32
_MOST = 0xFFFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and of files beyond 4 GB


def is_tiff(data: bytes) -> bool:
    """Whether these are the bytes of a TIFF."""
    return data[:4] in _TIFF


def bands_of(image: Image.Image) -> int:
    """The bands of a TIFF that Pillow has opened, perhaps as its first one alone; 1 of other files."""
    return int(getattr(image, "tag_v2", {}).get(277, 1))


def has_opacity(read: Callable[[], bytes]) -> bool:
    """Whether the last channel of a file is opacity; not of one that cannot be read."""
    try:
        with Image.open(io.BytesIO(read())) as image:
            return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    except Exception:  # a TIFF of many bands, or whatever else Pillow does not open
        return False


def stored_channels(image: Image.Image) -> np.ndarray:
    """All channels of an image of 8 bits that Pillow has opened, uint8 (H, W, C), upright.

    Raises:
        ValueError: For floating-point images and others without a known range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"mode {image.mode} has no known range")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA") or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA")
        image = image.convert(("LA" if grey else "RGBA") if image.has_transparency_data else "RGB")
    if image.mode in ("1", "YCbCr", "LAB", "HSV"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def tiff_channels(data: bytes, most_pixels: int) -> np.ndarray:
    """All channels of the first page of a TIFF, uint8 or uint16 (H, W, C), upright.

    Raises:
        UserError: Where tifffile is not installed.
        ValueError: For numbers without a known range, too many channels or pixels, and a page that is not whole.
    """
    tifffile = library("tifffile", "tiff", "more than four bands, or 16 bits in colour: read by")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        if not isinstance(page, tifffile.TiffPage) or page.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"a page of {getattr(page, 'dtype', None)} has no known range")
        channels, height, width = page.samplesperpixel, page.imagelength, page.imagewidth
        few = 1 <= channels <= MOST_CHANNELS and height * width * max(1, channels // 4) <= most_pixels
        if not few or page.imagedepth != 1:
            raise ValueError(f"{channels} channels of {width} x {height} pixels: up to {MOST_CHANNELS} are read")
        orientation = page.tags.get("Orientation")
        values = page.asarray()
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"axes {page.axes} are not those of an image")
        values = (
            values[..., None] if page.axes == "YX" else np.moveaxis(values, 0, -1) if page.axes[0] == "S" else values
        )
        kinds = tifffile.PHOTOMETRIC
        if page.photometric not in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB):
            raise ValueError(
                f"its values are stored as {kinds(page.photometric).name}; accepted: grey, colour or bands"
            )
        if page.photometric == kinds.MINISWHITE:
            values = np.iinfo(values.dtype).max - values
    return upright(values, 1 if orientation is None else int(orientation.value))


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned as the tag 274 of EXIF 2.3 and TIFF says: 1 is upright."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


def as_seen(values: np.ndarray, white: int) -> np.ndarray:
    """Stored channels as people see them: 1 or 3 as they are, opacity composited on white; (H, W, 1 or 3).

    Raises:
        ValueError: For more channels, which no eye sees.
    """
    channels = values.shape[2]
    if channels > 4:
        raise ValueError(f"it has {channels} bands; data.channels=all reads them")
    if channels in (1, 3):
        return values
    share = values[..., -1:].astype(np.float64) / np.iinfo(values.dtype).max
    return np.rint(values[..., :-1] * share + white * (1.0 - share)).astype(values.dtype)


def to_eight_bits(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Return the image as L or RGB, 8 bits a channel, composited on white.

    Args:
        image: The image.
        bits: Of 16-bit grey, how many its values use, 16 by default: the highest 8 of these are kept.

    Raises:
        ValueError: For floating-point or 32-bit images, whose range is not known; values that need more bits.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"mode {image.mode} (floating point or 32 bits) has no known range")
        bits = 16 if bits is None else bits
        if values.max() >> bits:
            raise ValueError(f"the value {values.max()} needs more than the {bits} bits of data.bits")
        # Not Pillow's own conversion to L, which clips at 255.
        return Image.fromarray((values.astype(np.uint16) >> (bits - 8)).astype(np.uint8))
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if grey else "RGB")


def all_levels(image: Image.Image, data: bytes, sixteen: str, bits: int) -> np.ndarray:
    """Return all levels 0 .. 2^bits - 1 of an image, (H, W) if grey or (H, W, 3) if colour, composited on white.

    Args:
        image: The image as Pillow opens it.
        data: The bytes of its file.
        sixteen: How its channels of 16 bits are stored (`sixteen_bits`).
        bits: How many bits its values use; those of 8-bit files are stretched to them.

    Raises:
        ValueError: For colour of 16 bits in other files than PNG, and values that need more bits.
    """
    if not (sixteen or image.mode.startswith("I")):
        eight = np.asarray(to_eight_bits(ImageOps.exif_transpose(image)), dtype=np.float64)
        return np.rint(eight * ((2**bits - 1) / 255)).astype(np.int32)
    if image.mode.startswith("I"):
        values = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    elif image.format == "PNG":
        values = as_seen(_deep_png(data, image), 2**bits - 1).astype(np.int64)
        values = values[..., 0] if values.shape[2] == 1 else values
    else:
        raise ValueError(
            f"colour of 16 bits in {image.format} is not read whole; accepted: PNG, TIFF, or an array in .npz"
        )
    if values.min() < 0 or values.max() > _MOST:
        raise ValueError(f"mode {image.mode} (32 bits) has no known range")
    if values.max() >> bits:
        raise ValueError(f"the value {values.max()} needs more than the {bits} bits of data.bits")
    return values.astype(np.int32)


def _deep_png(data: bytes, image: Image.Image) -> np.ndarray:
    """The values of a PNG whose channels have 16 bits, uint16 (H, W, C), upright; Pillow keeps 8 of these."""
    from torchvision.io import ImageReadMode, decode_png  # seconds

    pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return upright(pixels.to(torch.int32).numpy().astype(np.uint16).transpose(1, 2, 0), orientation)


def stored_values(image: Image.Image | None, data: bytes, sixteen: str, every: bool, white: int) -> np.ndarray | None:
    """(H, W, C) of uint8 or uint16 where it is not Pillow that reads it, or where all channels are requested.

    Args:
        image: As Pillow opens it; None for what it does not open.
        data: The bytes of the file.
        sixteen: As `all_levels`.
        every: Whether all channels are kept, or they are shown as people see them.
        white: The level of white in 16 bits.
    """
    if image is None or (sixteen and image.format == "TIFF" and image.mode[0] != "I"):
        values = tiff_channels(data, Image.MAX_IMAGE_PIXELS or 2**27)
    elif not every:
        return None
    elif sixteen and image.format == "PNG":
        values = _deep_png(data, image)
    elif image.mode.startswith("I;16"):
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)[..., None]
    elif sixteen:
        raise ValueError(f"16 bits in {image.format} are not read with all channels; accepted: PNG, TIFF")
    else:
        values = stored_channels(image)
    return values if every else as_seen(values, 255 if values.dtype == np.uint8 else white)


def in_levels(values: np.ndarray, whole: bool, bits: int) -> np.ndarray:
    """Stored values in the requested levels: 0 to 255, uint8, or all 2^bits, int32.

    Raises:
        ValueError: For values that need more bits.
    """
    deep = values.dtype == np.uint16
    if deep and int(values.max()) >> bits:
        raise ValueError(f"the value {values.max()} needs more than the {bits} bits of data.bits")
    if whole:
        return values.astype(np.int32) if deep else np.rint(values * ((2**bits - 1) / 255)).astype(np.int32)
    return (values >> (bits - 8)).astype(np.uint8) if deep else values


def sixteen_bits(image: Image.Image) -> str:
    """How a file's channels of 16 bits are stored, as Pillow calls it (`RGB;16B`); empty where they have fewer."""
    tiles = getattr(image, "tile", ())  # an ImageFile's
    for arg in (arg for tile in tiles for arg in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))):
        if (isinstance(arg, str) and ";16" in arg) or (image.format == "PPM" and isinstance(arg, int) and arg > 255):
            return str(arg)
    return ""
