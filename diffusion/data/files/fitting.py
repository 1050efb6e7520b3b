"""The size that images are brought to, and how."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

from ...errors import UserError


@dataclass(frozen=True)
class Fit:
    """The size that images are brought to, and how.

    Args:
        height, width: Of the result.
        how: `crop`: resized (bicubic, antialiased) until they cover it, and the rest cut off on both sides; `stretch`:
            resized, whatever becomes of their shape; `center`: its middle is cut out, and nothing is resized.
    """

    height: int
    width: int
    how: str = "crop"

    @property
    def key(self) -> int | str:
        """What distinguishes it from others, in a cache."""
        square = self.height == self.width and self.how == "crop"
        return self.height if square else f"{self.height}x{self.width} {self.how}"

    @property
    def in_words(self) -> str:
        """What becomes of an image, in words."""
        to = f"{self.height} x {self.width} (height x width)"
        if self.how == "crop" and self.height == self.width:
            return f"shorter side to {self.height} (bicubic, antialiased), centre crop"
        if self.how == "center":
            return f"to {to}, centre crop alone"
        return f"to {to}, bicubic, antialiased, {'centre crop' if self.how == 'crop' else 'stretched'}"

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image at this size.

        Raises:
            ValueError: For `center`, where the image is smaller.
        """
        width, height = image.size
        if (width, height) == (self.width, self.height):
            return image
        if self.how == "center":
            left, top = (width - self.width) // 2, (height - self.height) // 2
            if left < 0 or top < 0:
                raise ValueError(f"{width} x {height} is smaller than the {self.width} x {self.height} to cut out")
            return image.crop((left, top, left + self.width, top + self.height))
        # In one go, by the part of the original that remains: a narrow strip never becomes an enormous image.
        part_width, part_height = float(width), float(height)
        if self.how == "crop" and width * self.height > height * self.width:
            part_width = height * self.width / self.height
        elif self.how == "crop":
            part_height = width * self.height / self.width
        left, top = (width - part_width) / 2, (height - part_height) / 2
        box = (left, top, left + part_width, top + part_height)
        return image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)


Size = int | Fit  # one number: a square


def fit_of(size: Size | None) -> Fit | None:
    """The fit that a size stands for."""
    return Fit(size, size) if isinstance(size, int) else size


def resize_and_crop(image: Image.Image, size: Size) -> Image.Image:
    """Resize the shorter side (bicubic, antialiased) and cut out the centre, or as `Fit` says."""
    fit = fit_of(size)
    assert fit is not None
    return fit(image)


def check_memory(needed: int, what: str, instead: str) -> None:
    """Refuse what takes more bytes than the machine has; `instead` says what would do.

    Raises:
        UserError: For this: the system would end a process that fills the memory, without a word.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"{what}: {needed / 2**30:,.0f} GiB of memory are needed, and this machine has {there / 2**30:,.0f}; "
            f"{instead} would do"
        )


def room_for(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    instead: str = "a smaller size",
    key: str = "data.size",
    held: int = 0,
) -> Tensor:
    """Memory for images (N, C, H, W), not yet filled.

    Args:
        shape, dtype: Of the images.
        instead: What else would do.
        key: The option that says which images.
        held: Bytes of what they are made of, in memory at the same time.

    Raises:
        UserError: Where the machine has less.
    """
    count, channels, height, width = shape
    what = f"{key}: {count:,} images of {channels} x {height} x {width}"
    check_memory(math.prod(shape) * dtype.itemsize + held, what, instead)
    return torch.empty(shape, dtype=dtype)


def resize_arrays(images: Integer[Tensor, " n c h w"], size: Size | None, levels: int) -> Integer[Tensor, " n c h2 w2"]:
    """Apply `resize_and_crop` to images in memory; values stay in 0 .. levels - 1."""
    fit = fit_of(size)
    if fit is None or images.shape[-2:] == (fit.height, fit.width):
        return images
    if images.shape[1] not in (1, 3):
        return torch.cat([resize_arrays(band, fit, levels) for band in images.split(1, dim=1)], dim=1)
    if levels > 256:
        resized = room_for((len(images), images.shape[1], fit.height, fit.width), images.dtype)
        for row, image in enumerate(images):
            array = resize_levels(image.permute(1, 2, 0).numpy(), size, levels - 1)
            resized.numpy()[row] = channels_first(array)
        return resized
    resized = room_for((len(images), images.shape[1], fit.height, fit.width), torch.uint8)
    for row, image in enumerate(images):
        array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
        resized.numpy()[row] = channels_first(np.asarray(fit(Image.fromarray(array))))
    return resized.clamp_(max=levels - 1)  # bicubic interpolation overshoots


def resize_levels(values: np.ndarray, size: Size | None, most: int) -> np.ndarray:
    """`resize_and_crop` of levels 0 .. most, (H, W) or (H, W, C), channel by channel."""
    fit = fit_of(size)
    if fit is None or values.shape[:2] == (fit.height, fit.width):
        return values
    if values.ndim == 3:
        return np.stack([resize_levels(values[..., c], fit, most) for c in range(values.shape[2])], -1)
    resized = np.asarray(fit(Image.fromarray(values.astype(np.float32))))
    return np.rint(resized).clip(0, most).astype(values.dtype)  # bicubic interpolation overshoots


def channels_first(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) as (C, H, W)."""
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
