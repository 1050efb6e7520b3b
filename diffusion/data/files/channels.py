"""Images with all the channels that their files have (`data.channels=all`), and TIFFs that Pillow does not read whole.

A file's channels are taken as they are stored: grey (1), grey and opacity (2), colour (3), colour and opacity or CMYK
(4), the bands of a TIFF (up to 32). Palettes become the colours that they stand for. Pillow reads TIFFs of up to four
bands, and of 16 bits in colour the high bytes; others are read by tifffile, an extra (`pip install 'diffusion[tiff]'`).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from ...errors import UserError

MOST_CHANNELS = 32
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and of files beyond 4 GB


def is_tiff(data: bytes) -> bool:
    """Whether these are the bytes of a TIFF."""
    return data[:4] in _TIFF


def bands_of(image: Image.Image) -> int:
    """The bands of a TIFF that Pillow has opened, perhaps as its first one alone; 1 of other files."""
    return int(getattr(image, "tag_v2", {}).get(277, 1))


def has_opacity(data: bytes) -> bool:
    """Whether the last channel of a file is opacity."""
    try:
        with Image.open(io.BytesIO(data)) as image:
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
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            "more than four bands, or 16 bits in colour: read by tifffile, which is not installed; "
            "pip install 'diffusion[tiff]'"
        ) from error
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
