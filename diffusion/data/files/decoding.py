"""Image files to tensors of levels; large ones in threads.

What a pixel becomes, by the mode of its file: 1, L, LA and 16-bit grey are grey (one channel); P, RGB, RGBA, CMYK and
YCbCr are colour (three). Transparency is composited on white. 16-bit grey keeps the highest 8 of the bits that it uses
(`data.bits`), 16-bit colour its high byte, as Pillow does; of several frames the first is read (both are reported). The
EXIF orientation is applied. A grey file among colour files becomes three equal channels. With all levels (int32, not
uint8) PNG and TIFF files of 16 bits are as they are, and black and white of 8-bit files are those of 16 bits. With all
channels (`channels`) nothing is composited or converted, and all files have to have as many.
"""

from __future__ import annotations

import io
import os
import time
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
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import UserError
from .alike import EIGHT_BITS, Alike
from .channels import all_levels, bands_of, in_levels, is_tiff, sixteen_bits, stored_values, to_eight_bits
from .fitting import Size, channels_first, resize_and_crop, resize_levels, room_for

CHUNK, _SHARE = 1024, 16  # files decoded before the next are looked at, and by a thread at a time
# Seconds of a file below which threads do not pay: two take 1.6 times as long as one for 6,000 PNG of 32 x 32.
_SMALL = 5e-4
Progress = Callable[[int, int], None]
_room = partial(room_for, instead="a smaller size, or data.cache=FOLDER on a disk with room,")


@dataclass(frozen=True)
class ImageFile:
    """One image to read: its name inside the source (with /), how an error names it, and its bytes on demand."""

    name: str
    described: str
    read: Callable[[], bytes]


@dataclass
class Seen:
    """What is reported of files that were read.

    Attributes:
        tops: The largest value of each file of 16-bit grey.
        deep: The files of 16-bit colour, of which the high bytes are kept.
        several: The files of several frames or pages, of which the first is taken.
    """

    tops: list[int] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)


class UnreadableError(UserError):
    """A file that is no image, or damaged, or too large."""


def _opened(data: bytes) -> Image.Image | None:
    """What Pillow makes of a file; None of a TIFF that it does not know, as one of many bands."""
    try:
        return Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        if is_tiff(data):
            return None
        raise


def decode(file: ImageFile, size: Size | None, how: Alike = EIGHT_BITS, seen: Seen | None = None) -> np.ndarray:
    """Return one file as uint8, or with all its levels as int32, (H, W) if grey or (H, W, 3) if colour.

    With all its channels it is (H, W, C). What is reported of it is added to `seen`.

    Raises:
        UnreadableError: Where the file cannot be read, is damaged, or has more pixels than Pillow's limit; it is named.
    """
    limit = Image.MAX_IMAGE_PIXELS or 2**27
    too_large = UnreadableError(f"{file.described}: the image has more than {limit:,} pixels and is refused.")
    try:
        data = file.read()
        with closing(_opened(data) or Image.new("1", (1, 1))) as image:
            known = image.format is not None and bands_of(image) <= len(image.getbands())
            if known and image.width * image.height > limit:
                raise too_large
            sixteen, several = sixteen_bits(image), getattr(image, "is_animated", False)
            if seen is not None and several:
                seen.several.append(file.name)
            stored = None
            if how.every or how.whole or not known:
                stored = stored_values(image if known else None, data, sixteen, how.every, 2**how.used - 1)
            if stored is not None:
                if seen is not None and stored.dtype == np.uint16:
                    seen.tops.append(int(stored.max()))
                values = resize_levels(in_levels(stored, how.whole, how.used), size, how.most)
                return values[..., 0] if values.shape[2] == 1 else values
            if how.whole:
                values = all_levels(image, data, sixteen, how.used)
                if seen is not None and (sixteen or image.mode.startswith("I")):
                    seen.tops.append(int(values.max()))
                return resize_levels(values, size, how.most)
            ImageOps.exif_transpose(image, in_place=True)
            eight_bits = to_eight_bits(image, how.bits)
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
        raise UnreadableError(f"{file.described}: cannot be read as an image ({reason}).") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images in memory.

    Args:
        images: Those that could be read, shape (N, C, H, W).
        kept: Which of the files they are of.
        skipped: What was wrong with the others, one line each.
        seen: What is reported of those that could be read.
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
    allocate: Callable[[tuple[int, ...], torch.dtype], Tensor] = _room,
    how: Alike = EIGHT_BITS,
) -> Decoded:
    """Decode all files, in threads where that pays, into one tensor; three channels if any file is in colour, else one.

    Args:
        files: At least one file.
        size: Resize the shorter side to this and crop the centre; None keeps the files' own size, which must be one.
        progress: Called with (files read, files in all) now and then.
        skip: Leave out the files that cannot be read, rather than refuse them all.
        allocate: Makes room for images of a shape and type.
        how: How they are read; with all their levels, as int32; with all channels, each has to have as many.

    Raises:
        UserError: For a damaged file, none that is not, or sizes that differ where `size` is None.
    """
    images: Tensor | None = None
    rows = np.empty(0)  # of the same memory
    remaining = iter(files)
    done, first = 0, ""
    kept: list[int] = []
    skipped: list[str] = []
    seen = Seen()
    one = partial(_decode_or_tell if skip else decode, size=size, how=how, seen=seen)
    dtype = torch.int32 if how.whole else torch.uint8
    # The warning below Pillow's hard limit would be printed from a thread; `decode` refuses such images itself.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # In chunks, so that a first error is not followed by the decoding of everything else.
        small = True
        Image.preinit()  # which is no time of the first file's
        start = time.perf_counter()
        while chunk := list(islice(remaining, CHUNK if done else _SHARE)):
            shares = [chunk[at : at + _SHARE] for at in range(0, len(chunk), _SHARE)]
            decoded = (map if small else pool.map)(lambda share: [one(file) for file in share], shares)
            arrays = chain.from_iterable(decoded)
            if not done:
                arrays = list(arrays)
                small = time.perf_counter() - start < _SMALL * len(arrays)
            for file, array in zip(chunk, arrays, strict=True):
                done += 1
                if isinstance(array, str):
                    skipped.append(array)
                    continue
                array = channels_first(array)
                if images is None:
                    images, first = allocate((len(files), *array.shape), dtype), file.described
                    rows = images.numpy()
                if array.shape[1:] != rows.shape[2:]:
                    raise UserError(
                        f"data.path: images differ in size: {first} is {_size(images)}, {file.described} "
                        f"is {_size(array)} (width x height); data.size=... resizes and crops them all."
                    )
                if how.every and len(array) != len(rows[0]):
                    raise UserError(
                        f"data.path: images differ in channels: {first} has {len(rows[0])}, {file.described} has "
                        f"{len(array)}; data.channels=seen shows them all in colour"
                    )
                if len(array) > len(rows[0]):
                    grey, images = images, allocate((len(files), 3, *images.shape[2:]), dtype)
                    images[: len(kept)] = grey[: len(kept)]  # the first colour file: what was read so far is grey
                    rows = images.numpy()
                rows[len(kept)] = array
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
