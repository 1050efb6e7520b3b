"""Image data sets as level indices in memory, with fixed train, validation and test splits.

An image is uint8 (C, H, W) with values 0 .. levels - 1.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor

from ..config import FUNCTIONS, IMAGE_SETS, DataConfig
from ..errors import UserError, choose
from ..networks.parts import LABEL
from ..storage.paths import named_path
from .files.alike import Alike
from .files.decoding import Progress, UnreadableError
from .files.fitting import Fit
from .files.image_files import load_files
from .files.raw_images import OPACITY
from .named_sets import has_layout, image_set, load_named, load_torchvision
from .split_data import SplitData, rows_of, split_data, trained_on
from .splits import SPLITS, split_rows


@dataclass(frozen=True, eq=False)
class ImageData(SplitData):
    """A data set of images, split: level indices of shape (N, C, H, W), uint8, or int32 for more than 256 levels."""

    train: Integer[Tensor, " n_train c h w"] = field(repr=False)
    validation: Integer[Tensor, " n_validation c h w"] = field(repr=False)
    test: Integer[Tensor, " n_test c h w"] = field(repr=False)
    levels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width


def image_names() -> list[str]:
    """Return the names that `load_images` takes."""
    return [*IMAGE_SETS, "folder"]


def load_images(
    name: str,
    path: str | Path | None = None,
    root: str | Path = "data",
    download: bool = True,
    size: Any = None,
    validation: Any = None,
    progress: Progress | None = None,
    unreadable: str = "refuse",
    cache: str | Path | None = None,
    bits: Any = None,
    levels: Any = "256",
    fit: str = "crop",
    channels: str = "seen",
    columns: Sequence[str] = (),
) -> ImageData:
    """Load a data set of images into memory.

    Args:
        name: One of `image_names()`; `folder` reads any images from `path`.
        path: A folder, .zip, .tar, .npz or .npy of images to read in place of the named set's own files; also a
            folder in torchvision's layout (holding `MNIST/raw` or `cifar-10-batches-py`).
        root: Folder of the sets that are downloaded.
        download: Whether to download what is absent.
        size: Height and width, (H, W), `HxW` or one number for both, that images are brought to.
        validation: Number (int) or share (float) of training images held out for validation. None: digits 90,
            MNIST and its relatives 5,000, CIFAR-10 1,000 (the same shares where `path` gives other numbers of
            images), folder 10 %.
        progress: Called with (files read, files in all) now and then, where single files are read.
        unreadable: What becomes of single files that are no images: `refuse` (the first one is named) or `skip` (with
            a warning that counts them).
        cache: Folder to keep the images decoded from single files in, from where they are mapped and not read.
        bits: How many bits the values of 16-bit grey files use: 12 takes 0 to 4095 as black to white. None: 16; files
            of which none uses the upper 4 are refused.
        fit: How: `crop` (bicubic, antialiased, until they cover it, and the centre), `stretch`, or `center` (a centre
            crop alone).
        channels: `seen`: grey, or colour on white; `all`: those that files have, with opacity and all bands of a TIFF.
        levels: `256`, or `all`: the 2^bits levels of 16-bit files and arrays, in int32 and not uint8.
        columns: The names of what else is read of every image, to condition a model on: keys of an .npz, columns of
            labels.csv, folders of images of the same names. `label` is the class, of images in no folders of classes
            the column of that name.

    What is guessed or left out is warned of (`DataNote`), and kept in the provenance.

    Raises:
        UserError: For an unknown name, and for data that is absent, damaged or unsafe; one line that names it.
    """
    choose("data.name", name, image_names())
    size, bits = _size(size, fit), _whole("data.bits", bits, 8)
    if not isinstance(validation, float):
        validation = _whole("data.validation", validation)
    facts = image_set(name)
    if name == "digits" and path is not None:
        raise UserError(
            "data.path: digits come with scikit-learn and take no path; for other images: data.name=folder."
        )
    if path is None:
        if name == "folder":
            raise UserError(
                "data.path: found none; data.name=folder needs the path of images: a folder, a .zip, .tar, .npz or "
                ".npy file."
            )
        raw = load_named(name, root, download, size)
    elif has_layout(name, named_path(path, "data.path")):
        raw = load_torchvision(name, named_path(path, "data.path"), False, size)
    else:

        def split_files(keys: list[str], parts: dict[str, range]) -> tuple[dict[str, list[int]], str]:
            return split_rows(keys, parts, validation, facts.validation_fraction, facts.test_fraction)

        choose("data.unreadable", unreadable, DataConfig.words("unreadable"))
        whole = choose("data.levels", str(levels), DataConfig.words("levels")) == "all"
        every = choose("data.channels", channels, DataConfig.words("channels")) == "all"
        skip, kept_in = unreadable == "skip", None if cache is None else named_path(cache, "data.cache")
        how, source = Alike(bits, whole, every), named_path(path, "data.path")
        try:
            raw = load_files(source, size, progress, skip, kept_in, split_files, how, columns)
        except UnreadableError as error:
            raise UserError(f"{error} data.unreadable=skip leaves such files out.") from error

    if (others := [column for column in columns if column != LABEL]) and not raw.columns:
        raise UserError(f"denoiser.condition: found '{others[0]}'; '{name}' has images and labels alone; accepted: "
                        f"{', '.join((LABEL, *FUNCTIONS))}")  # fmt: skip
    pixels, levels = raw.images, raw.levels
    assert isinstance(pixels, Tensor)
    assert levels is not None
    low, high = int(pixels.min()), int(pixels.max())
    rows, rule = rows_of(raw, validation, facts.validation_fraction, facts.test_fraction)
    images = {split: pixels[rows[split]] for split in SPLITS}
    if path is not None:
        raw = replace(raw, notes=(*raw.notes, *_poor(pixels, levels, low, high, size is None), *trained_on(images)))
    count, height, width = pixels.shape[1:]
    about: dict[str, str | int | float] = {
        "channels": count,
        **({OPACITY: "the last channel"} if raw.opacity else {}),
        "height": height,
        "width": width,
        "levels": levels,
        "used": f"{low} to {high}",
        "resize": "none" if size is None else size.in_words,
        "split": rule,
    }
    return split_data(ImageData, name, raw, images, rows, about, facts.flip)


def _poor(images: Tensor, levels: int, low: int, high: int, stored: bool) -> list[str]:
    """What is reported of images that may not be what they are taken for; `stored`: as in the files, not resized.

    Raises:
        UserError: Where all are of one value: there is nothing to learn.
    """
    if low == high:
        raise UserError(f"data.path: all {len(images):,} images are of the one value {low}; nothing can be learnt.")
    flat = images.flatten(1)
    notes = []
    if high < levels // 2:
        dark = "nearly black" if high < 16 else "dark"
        bits = max(8, high.bit_length())
        fewer = f"; data.bits={bits} takes 0 to {2**bits - 1:,} as black to white" if levels > 256 and stored else ""
        notes.append(f"no value above {high} of {levels - 1}: the images are {dark}{fewer}")
    if torch.equal(flat.amin(1), flat.amax(1)):
        notes.append("every image is of one value: there is nothing in them but their brightness")
    return notes


def _size(size: Any, fit: str) -> Fit | None:
    """The size that images are brought to, of a number, two, or `HxW`."""
    choose("data.fit", fit, DataConfig.words("fit"))
    if size is None:
        return None
    sides = size.split("x") if isinstance(size, str) else size if isinstance(size, tuple | list) else (size, size)
    if isinstance(size, str):
        sides = [int(side) if side.isascii() and side.isdigit() else size for side in sides]
    if len(sides) != 2 or None in sides:
        raise UserError(f"data.size: found {size!r}; must be a whole number from 1 on, or height and width, e.g. 32x48")
    height, width = (_whole("data.size", side, 1) for side in sides)
    assert height is not None
    assert width is not None
    return Fit(height, width, fit)


def _whole(key: str, value: Any, least: int | None = None) -> int | None:
    """A whole number of any library, or None."""
    if value is None:
        return None
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        wanted = "" if least is None else f" from {least} on"
        raise UserError(f"{key}: found {value!r}; must be a whole number{wanted}")
    return number
