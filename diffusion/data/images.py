"""Image data sets as level indices in memory, with fixed train, validation and test splits.

An image is uint8 (C, H, W) with values 0 .. levels - 1. The split is part of the data set and never depends on a seed
(see `splits.py`); what was read is recorded in `provenance`, with the SHA-256 of each split's bytes.
"""

from __future__ import annotations

import hashlib
import json
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..errors import UserError, choose
from ..storage.paths import named_path
from . import named_sets
from .files.decoding import Progress
from .files.image_files import load_files
from .files.raw_images import RawImages
from .named_sets import has_layout, load_torchvision
from .splits import SPLITS, split_rows


class DataNote(UserWarning):
    """Something in a source of images was guessed, or left out."""


@dataclass(frozen=True)
class ImageSet:
    """What holds for a data set by its name: the default share of validation images, and whether flips are valid."""

    validation_fraction: float
    flip: bool = False


UNREADABLE = ("refuse", "skip")
# A folder's images may be letters or faces: nobody knows whether mirrored ones belong, so they are not made by default.
IMAGE_SETS = {
    "digits": ImageSet(named_sets.VALIDATION_FRACTION),
    "mnist": ImageSet(5_000 / 60_000),
    "fashion-mnist": ImageSet(5_000 / 60_000),
    "kmnist": ImageSet(5_000 / 60_000),
    "cifar10": ImageSet(1_000 / 50_000, flip=True),
    "folder": ImageSet(0.1),
}


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of images, split.

    Args:
        name: One of `image_names()`.
        train, validation, test: Level indices, shapes (N, C, H, W); validation may be empty.
        train_labels, validation_labels, test_labels: Classes 0 .. num_classes - 1, shapes (N,), or None.
        levels: Number of values that a channel can take (17 for digits, else 256).
        num_classes: Number of classes, 0 without labels.
        flip: Whether horizontal flips are a valid augmentation of the training images.
        provenance: Source, sizes, split rule, SHA-256 of each split's bytes and labels, names of the classes, and what
            was guessed or left out (`notes`), as plain text and numbers.
        train_names: The files of the training images, or their numbers in the source where they are no files.
    """

    name: str
    train: UInt8[Tensor, " n_train c h w"] = field(repr=False)
    train_labels: Int64[Tensor, " n_train"] | None = field(repr=False)
    validation: UInt8[Tensor, " n_validation c h w"] = field(repr=False)
    validation_labels: Int64[Tensor, " n_validation"] | None = field(repr=False)
    test: UInt8[Tensor, " n_test c h w"] = field(repr=False)
    test_labels: Int64[Tensor, " n_test"] | None = field(repr=False)
    levels: int
    num_classes: int
    flip: bool
    provenance: dict[str, str | int | float] = field(repr=False)
    train_names: Sequence[str] = field(default=(), repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width


def image_names() -> list[str]:
    """Return the names that `load_images` takes."""
    return list(IMAGE_SETS)


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
) -> ImageData:
    """Load a data set of images into memory.

    Args:
        name: One of `image_names()`; `folder` reads any images from `path`.
        path: A folder, .zip, .tar, .npz or .npy of images to read in place of the named set's own files; also a
            folder in torchvision's layout (holding `MNIST/raw` or `cifar-10-batches-py`).
        root: Folder of the sets that are downloaded.
        download: Whether to download what is absent.
        size: Resize the shorter side to this (bicubic, antialiased) and crop the centre.
        validation: Number (int) or share (float) of training images held out for validation. None: digits 90,
            MNIST and its relatives 5,000, CIFAR-10 1,000 (the same shares where `path` gives other numbers of
            images), folder 10 %.
        progress: Called with (files read, files in all) now and then, where single files are read.
        unreadable: What becomes of single files that are no images: `refuse` (the first one is named) or `skip` (with
            a warning that counts them).
        cache: Folder to keep the images decoded from single files in, from where they are mapped and not read.
        bits: How many bits the values of 16-bit grey files use: 12 takes 0 to 4095 as black to white. None: 16; files
            of which none uses the upper 4 are refused.

    What is guessed or left out is warned of (`DataNote`), and kept in the provenance.

    Raises:
        UserError: For an unknown name, and for data that is absent, damaged or unsafe; one line that names it.
    """
    choose("data.name", name, IMAGE_SETS)
    size, bits = _whole("data.size", size, 1), _whole("data.bits", bits, 8)
    if not isinstance(validation, float):
        validation = _whole("data.validation", validation)
    test_fraction, facts = 0.1, IMAGE_SETS[name]
    if name == "digits":
        if path is not None:
            raise UserError(
                "data.path: digits come with scikit-learn and take no path; for other images: data.name=folder."
            )
        raw, test_fraction = named_sets.load_digits(size), named_sets.TEST_FRACTION
    elif path is None:
        if name == "folder":
            raise UserError(
                "data.path: found none; data.name=folder needs the path of images: a folder, a .zip, .tar, .npz or "
                ".npy file."
            )
        raw = load_torchvision(name, named_path(root, "data.root"), download, size)
    elif has_layout(name, named_path(path, "data.path")):
        raw = load_torchvision(name, named_path(path, "data.path"), False, size)
    else:

        def split_files(keys: list[str], parts: dict[str, range]) -> tuple[dict[str, list[int]], str]:
            return split_rows(keys, parts, validation, facts.validation_fraction, test_fraction)

        choose("data.unreadable", unreadable, UNREADABLE)
        skip, kept_in = unreadable == "skip", None if cache is None else named_path(cache, "data.cache")
        raw = load_files(named_path(path, "data.path"), size, progress, skip, kept_in, split_files, bits)

    low, high = int(raw.images.min()), int(raw.images.max())
    rows, rule = _rows(raw, validation, facts, test_fraction)
    images = {split: raw.images[rows[split]] for split in SPLITS}
    if path is not None:
        raw = replace(raw, notes=(*raw.notes, *_poor(raw, low, high), *_trained_on(images)))
    for note in raw.notes:
        warnings.warn(f"data.path: {note}", DataNote, stacklevel=2)
    labels = {split: None if raw.labels is None else raw.labels[rows[split]] for split in SPLITS}
    channels, height, width = raw.images.shape[1:]
    provenance: dict[str, str | int | float] = {
        "name": name,
        "source": raw.source,
        "channels": channels,
        "height": height,
        "width": width,
        "levels": raw.levels,
        "used": f"{low} to {high}",
        "resize": "none" if size is None else f"shorter side to {size} (bicubic, antialiased), centre crop",
        "classes": ", ".join(raw.class_names) or raw.num_classes,
        **({"class_names": json.dumps(raw.class_names)} if raw.class_names else {}),
        "split": rule,
        **({"skipped": raw.skipped} if raw.skipped else {}),
        **({"notes": "\n".join(raw.notes)} if raw.notes else {}),
    }
    for split in SPLITS:
        provenance[f"{split}_images"] = len(images[split])
        provenance[f"{split}_sha256"] = hashlib.sha256(images[split].numpy().data).hexdigest()
        if (of_split := labels[split]) is not None:
            provenance[f"{split}_labels_sha256"] = hashlib.sha256(of_split.numpy().data).hexdigest()
    return ImageData(
        name=name,
        train=images["train"],
        train_labels=labels["train"],
        validation=images["validation"],
        validation_labels=labels["validation"],
        test=images["test"],
        test_labels=labels["test"],
        levels=raw.levels,
        num_classes=raw.num_classes,
        flip=facts.flip,
        provenance=provenance,
        train_names=raw.keys[rows["train"]]
        if isinstance(rows["train"], slice)
        else [raw.keys[i] for i in rows["train"]],
    )


def _poor(raw: RawImages, low: int, high: int) -> list[str]:
    """What is to be told of images that may not be what they are taken for, a line each.

    Raises:
        UserError: Where all are of one value: there is nothing to learn.
    """
    if low == high:
        raise UserError(f"data.path: all {len(raw.images):,} images are of the one value {low}; nothing can be learnt.")
    flat = raw.images.flatten(1)
    notes = []
    if high < raw.levels // 2:
        dark = "nearly black" if high < 16 else "dark"
        notes.append(f"no value above {high} of {raw.levels - 1}: the images are {dark}")
    if torch.equal(flat.amin(1), flat.amax(1)):
        notes.append("every image is of one value: there is nothing in them but their brightness")
    return notes


def _trained_on(images: Mapping[str, Tensor]) -> list[str]:
    """A line for each split that holds images of the training set, to the bit: its figures flatter the model."""
    held_out = {split: [hash(x.numpy().tobytes()) for x in images[split]] for split in SPLITS[1:]}
    wanted = {key for keys in held_out.values() for key in keys}
    known = {key for x in images["train"] if (key := hash(x.numpy().tobytes())) in wanted} if wanted else set()
    counts = {split: sum(key in known for key in keys) for split, keys in held_out.items()}
    return [
        f"{count:,} of {len(held_out[split]):,} {split} images are training images, too, to the bit"
        for split, count in counts.items()
        if count
    ]


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


def _rows(
    raw: RawImages, validation: int | float | None, facts: ImageSet, test_fraction: float
) -> tuple[Mapping[str, slice | list[int]], str]:
    """The rows of each split, as slices (views, not copies) where the images lie in their order."""
    if raw.rule is not None:
        return {split: slice(raw.parts[split].start, raw.parts[split].stop) for split in SPLITS}, raw.rule
    return split_rows(raw.keys, raw.parts, validation, facts.validation_fraction, test_fraction)
