"""Image files to tensors of levels, in threads.

What a pixel becomes, by the mode of its file: 1, L, LA and 16-bit grey are grey (one channel); P, RGB, RGBA, CMYK and
YCbCr are colour (three). Transparency is composited on white. 16-bit grey keeps the highest 8 of the bits that it uses
(`data.bits`), 16-bit colour its high byte, as Pillow does; of several frames the first is read (both are told). The
EXIF orientation is applied. A grey file among colour files becomes three equal channels. With all levels (int32, not
uint8) PNG and TIFF files of 16 bits are as they are, and black and white of 8-bit files are those of 16 bits. With all
channels (`channels`) nothing is composited or converted, and all files have to have as many.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ...errors import UserError
from .channels import as_seen, bands_of, is_tiff, stored_channels, tiff_channels, upright
from .fitting import Size, fit_of, resize_and_crop

CHUNK, _SHARE = 1024, 16  # files decoded before the next are looked at, and by a thread at a time
_MOST = 0xFFFF
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageFile:
    """One image to read: its name inside the source (with /), how an error names it, and its bytes on demand."""

    name: str
    described: str
    read: Callable[[], bytes]


def resize_arrays(images: Integer[Tensor, " n c h w"], size: Size | None, levels: int) -> Integer[Tensor, " n c h2 w2"]:
    """Apply `resize_and_crop` to images in memory; values stay in 0 .. levels - 1."""
    fit = fit_of(size)
    if fit is None or images.shape[-2:] == (fit.height, fit.width):
        return images
    if images.shape[1] not in (1, 3):
        return torch.cat([resize_arrays(band, fit, levels) for band in images.split(1, dim=1)], dim=1)
    if levels > 256:
        rows = [resize_levels(image.permute(1, 2, 0).numpy(), size, levels - 1) for image in images]
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
    resized = torch.empty(len(images), images.shape[1], fit.height, fit.width, dtype=torch.uint8)
    for row, image in enumerate(images):
        array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
        resized.numpy()[row] = _channels_first(np.asarray(fit(Image.fromarray(array))))
    return resized.clamp_(max=levels - 1)  # bicubic interpolation overshoots


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
        sixteen: How its channels of 16 bits are stored (`_sixteen_bits`).
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


def _stored(image: Image.Image | None, data: bytes, sixteen: str, every: bool, white: int) -> np.ndarray | None:
    """(H, W, C) of uint8 or uint16 where it is not Pillow that reads it, or where all channels are asked for.

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


def _in_levels(values: np.ndarray, whole: bool, bits: int) -> np.ndarray:
    """Stored values in the levels that are asked for: 0 to 255, uint8, or all 2^bits, int32.

    Raises:
        ValueError: For values that need more bits.
    """
    deep = values.dtype == np.uint16
    if deep and int(values.max()) >> bits:
        raise ValueError(f"the value {values.max()} needs more than the {bits} bits of data.bits")
    if whole:
        return values.astype(np.int32) if deep else np.rint(values * ((2**bits - 1) / 255)).astype(np.int32)
    return (values >> (bits - 8)).astype(np.uint8) if deep else values


def resize_levels(values: np.ndarray, size: Size | None, most: int) -> np.ndarray:
    """`resize_and_crop` of levels 0 .. most, (H, W) or (H, W, C), channel by channel."""
    fit = fit_of(size)
    if fit is None or values.shape[:2] == (fit.height, fit.width):
        return values
    if values.ndim == 3:
        return np.stack([resize_levels(values[..., c], fit, most) for c in range(values.shape[2])], -1)
    resized = np.asarray(fit(Image.fromarray(values.astype(np.float32))))
    return np.rint(resized).clip(0, most).astype(values.dtype)  # bicubic interpolation overshoots


@dataclass
class Seen:
    """What is to be told of files that were read.

    Attributes:
        tops: The largest value of each file of 16-bit grey.
        deep: The files of 16-bit colour, of which the high bytes are kept.
        several: The files of several frames or pages, of which the first is taken.
    """

    tops: list[int] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)


def _sixteen_bits(image: Image.Image) -> str:
    """How a file's channels of 16 bits are stored, as Pillow calls it (`RGB;16B`); empty where they have fewer."""
    tiles = getattr(image, "tile", ())  # an ImageFile's
    for arg in (arg for tile in tiles for arg in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))):
        if (isinstance(arg, str) and ";16" in arg) or (image.format == "PPM" and isinstance(arg, int) and arg > 255):
            return str(arg)
    return ""


def _opened(data: bytes) -> Image.Image | None:
    """What Pillow makes of a file; None of a TIFF that it does not know, as one of many bands."""
    try:
        return Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        if is_tiff(data):
            return None
        raise


def decode(
    file: ImageFile,
    size: Size | None,
    bits: int | None = None,
    seen: Seen | None = None,
    whole: bool = False,
    every: bool = False,
) -> np.ndarray:
    """Return one file as uint8, or with all its levels (`whole`) as int32, (H, W) if grey or (H, W, 3) if colour.

    With all its channels (`every`) it is (H, W, C). What is to be told of it is added to `seen`.

    Raises:
        UserError: Where the file cannot be read, is damaged, or has more pixels than Pillow's limit; the file is named.
    """
    limit = Image.MAX_IMAGE_PIXELS or 2**27
    too_large = UserError(f"{file.described}: the image has more than {limit:,} pixels and is refused.")
    try:
        data, used = file.read(), 16 if bits is None else bits
        with closing(_opened(data) or Image.new("1", (1, 1))) as image:
            known = image.format is not None and bands_of(image) <= len(image.getbands())
            if known and image.width * image.height > limit:
                raise too_large
            sixteen, several = _sixteen_bits(image), getattr(image, "is_animated", False)
            if seen is not None and several:
                seen.several.append(file.name)
            stored = None
            if every or whole or not known:
                stored = _stored(image if known else None, data, sixteen, every, 2**used - 1)
            if stored is not None:
                if seen is not None and stored.dtype == np.uint16:
                    seen.tops.append(int(stored.max()))
                values = resize_levels(_in_levels(stored, whole, used), size, 2**used - 1 if whole else 255)
                return values[..., 0] if values.shape[2] == 1 else values
            if whole:
                values = all_levels(image, data, sixteen, used)
                if seen is not None and (sixteen or image.mode.startswith("I")):
                    seen.tops.append(int(values.max()))
                return resize_levels(values, size, 2**used - 1)
            ImageOps.exif_transpose(image, in_place=True)
            eight_bits = to_eight_bits(image, bits)
            if sixteen.startswith("LA"):  # opened as colour
                eight_bits = eight_bits.convert("L")
            if seen is not None and image.mode.startswith("I"):
                seen.tops.append(int(np.asarray(image).max()))
            elif seen is not None and sixteen:
                seen.deep.append(file.name)
            return np.asarray(eight_bits if size is None else resize_and_crop(eight_bits, size))
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Exception as error:  # each decoder fails in its own way: OSError, SyntaxError, struct.error, zlib.error ...
        reason = "not an image of a known kind" if isinstance(error, Image.UnidentifiedImageError) else _line(error)
        raise UserError(f"{file.described}: cannot be read as an image ({reason}).") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images in memory.

    Args:
        images: Those that could be read, shape (N, C, H, W).
        kept: Which of the files they are of.
        skipped: What was wrong with the others, one line each.
        seen: What is to be told of those that could be read.
    """

    images: Integer[Tensor, " n c h w"]
    kept: list[int]
    skipped: list[str]
    seen: Seen = field(default_factory=Seen)


def decode_all(
    files: Sequence[ImageFile],
    size: Size | None = None,
    progress: Progress | None = None,
    skip: bool = False,
    allocate: Callable[[tuple[int, ...], torch.dtype], Tensor] = _in_memory,
    bits: int | None = None,
    whole: bool = False,
    every: bool = False,
) -> Decoded:
    """Decode all files, in threads, into one tensor; three channels if any file is in colour, else one.

    Args:
        files: At least one file.
        size: Resize the shorter side to this and crop the centre; None keeps the files' own size, which must be one.
        progress: Called with (files read, files in all) now and then.
        skip: Leave out the files that cannot be read, rather than refuse them all.
        allocate: Makes room for images of a shape and type.
        bits: How many bits the values of 16-bit files use, 16 by default.
        whole: Keep all levels, as int32, rather than the upper 8 bits.
        every: Keep all channels, of which each file has to have as many.

    Raises:
        UserError: For a damaged file, none that is not, or sizes that differ where `size` is None.
    """
    images: Tensor | None = None
    remaining = iter(files)
    done, first = 0, ""
    kept: list[int] = []
    skipped: list[str] = []
    seen = Seen()
    one = partial(_decode_or_tell if skip else decode, size=size, bits=bits, seen=seen, whole=whole, every=every)
    dtype = torch.int32 if whole else torch.uint8
    # The warning below Pillow's hard limit would be printed from a thread; `decode` refuses such images itself.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # In chunks, so that a first error is not followed by the decoding of everything else.
        while chunk := list(islice(remaining, CHUNK)):
            shares = [chunk[start : start + _SHARE] for start in range(0, len(chunk), _SHARE)]
            arrays = chain.from_iterable(pool.map(lambda share: [one(file) for file in share], shares))
            for file, array in zip(chunk, arrays, strict=True):
                done += 1
                if isinstance(array, str):
                    skipped.append(array)
                    continue
                array = _channels_first(array)
                if images is None:
                    images, first = allocate((len(files), *array.shape), dtype), file.described
                if array.shape[1:] != images.shape[2:]:
                    raise UserError(
                        f"data.path: images differ in size: {first} is {_size(images)}, {file.described} "
                        f"is {_size(array)} (width x height); data.size=... resizes and crops them all."
                    )
                if every and len(array) != images.shape[1]:
                    raise UserError(
                        f"data.path: images differ in channels: {first} has {images.shape[1]}, {file.described} has "
                        f"{len(array)}; data.channels=seen shows them all in colour"
                    )
                if len(array) > images.shape[1]:
                    grey, images = images, allocate((len(files), 3, *images.shape[2:]), dtype)
                    images[: len(kept)] = grey[: len(kept)]  # the first colour file: what was read so far is grey
                images.numpy()[len(kept)] = array
                kept.append(done - 1)
            if progress is not None:
                progress(done, len(files))
    if images is None:
        raise UserError(f"data.path: none of the {len(files)} images can be read; the first: {skipped[0]}")
    return Decoded(images[: len(kept)], kept, skipped, Seen(sorted(seen.tops), sorted(seen.deep), sorted(seen.several)))


def refuse_unused_bits(tops: Sequence[int]) -> None:
    """Refuse 16-bit files of which none uses the upper bits: cameras, CT and microscopes have 14, 12, 10 or 8.

    Args:
        tops: The largest value of each 16-bit file, whatever other files there are.

    Raises:
        UserError: For such files; the line says what is used, and how to read it.
    """
    top = max(tops, default=2**16)
    if top < 2**15:
        bits = max(8, top.bit_length())
        raise UserError(
            f"data.path: 16-bit images, with no value above {top} of 65535: data.bits={bits} takes 0 to "
            f"{2**bits - 1} as black to white (data.bits=16: as they are, {'nearly black' if bits <= 12 else 'dark'})."
        )


def _decode_or_tell(file: ImageFile, **how: Any) -> np.ndarray | str:
    try:
        return decode(file, **how)
    except UserError as error:
        return str(error)


def _size(image: Tensor | np.ndarray) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
