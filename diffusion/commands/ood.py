"""Out of distribution: likelihoods of two data sets under one model, and how well they separate the sets.

    AUROC = P(bits/dim of a foreign image > that of a native one) + P(equal) / 2

0.5 is chance. Below it the model finds the foreign images more likely, which happens if they are simpler (Nalisnick et
al. 2019, arXiv 1810.09136).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..config import SPLITS
from ..data import ImageData, image_names, load_images
from ..data.files.alike import Alike, EightBitsError
from ..data.splits import GIVEN
from ..denoisers.inverse_problems.operators import LUMA
from ..errors import UserError, did_you_mean, reported_as
from ..likelihood import Dequantizer
from .compare.figures import histograms
from .records import Evaluation
from .subjects import identify, images_of


@dataclass(frozen=True, eq=False)
class Foreign:
    """Images of another data set, in the form of a model's own.

    Args:
        images: Level indices.
        identity: What identifies them.
        note: Which images they are and how they were converted, in one line.
    """

    images: Tensor
    identity: dict[str, Any]
    note: str


def load(name: str, native: ImageData, split: str, count: int | None, bits: int | None = None) -> Foreign:
    """The images of another data set, at the size, the levels and the channels of `native`.

    Finer levels become the native ones of bins of equal width (`Dequantizer.regraded`). Colour becomes grey by its
    luma (Rec. 601), grey three equal channels. Where a path names images without splits, all of them are taken:
    no model here was trained on any.

    Args:
        name: A named data set, or the path of a folder, .zip or .npz.
        native: The images that the model was trained on.
        split: Which images of the other set.
        count: How many at most, the first in the fixed order; None for all.
        bits: `data.bits`, with which the model's own were read.

    Raises:
        UserError: For data that are not there, or have fewer levels, another size or other channels than these.
    """
    size = native.shape[1:]
    if name in image_names() and name != "folder":
        other = load_images(name, size=size)
    elif Path(name).exists():
        other = _of_files(name, native, bits)
    else:
        names = [known for known in image_names() if known != "folder"]
        accepted = f"{', '.join(names)}, or a path of images"
        raise UserError(f"--ood: found '{name}'; accepted: {accepted}.{did_you_mean(name, names)}")
    has_splits = other.name != "folder" or GIVEN in str(other.provenance["split"])
    if not has_splits:
        other = replace(other, **{split: torch.cat([getattr(other, part) for part in SPLITS])})
        which = f"all {len(getattr(other, split)):,} images, as it has no splits"
    else:
        which = f"{len(getattr(other, split)):,} {split} images"
    channels = {native.shape[0], other.shape[0]}
    if native.shape[1:] != other.shape[1:] or (len(channels) == 2 and channels != {1, 3}):
        raise UserError(f"--ood: '{name}' has shape {other.shape}; the model's images have {native.shape}")
    if native.levels > other.levels:
        raise UserError(f"--ood: '{name}' has levels {other.levels}; the model's images have {native.levels}")
    available = len(getattr(other, split))
    images, identity = images_of(other, split, None if count is None else min(count, available))
    changes = [] if len(images) == available else [f"{len(images):,} of them measured"]
    if other.shape[0] != native.shape[0]:
        images = _grey(images) if native.shape[0] == 1 else images.expand(-1, native.shape[0], -1, -1)
        changes.append(f"turned {'grey' if native.shape[0] == 1 else 'to three equal channels'}")
    if other.levels != native.levels:
        images = Dequantizer(native.levels).regraded(images, other.levels)
        changes.append(f"{other.levels} levels to {native.levels}")
    identity = {**identity, **identify(images, Path(name).name, split if has_splits else "all", native.levels)}
    return Foreign(images, {**identity, "foreign": True}, f"--ood {name}: {', '.join([which, *changes])}")


def _of_files(path: str, native: ImageData, bits: int | None) -> ImageData:
    """Images of the user's own, in the levels and the channels of `native` where their files have these."""
    alike = Alike.of(native.shape[0], native.levels, bits)
    how = {"size": native.shape[1:], "bits": alike.bits, "channels": "all" if alike.every else "seen"}
    with reported_as({"data.path": "--ood"}):
        try:
            return load_images("folder", path=path, levels="all" if alike.whole else "256", **how)
        except EightBitsError:
            return load_images("folder", path=path, **how)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA).reshape(3, 1, 1)
    return (images * weights).sum(1, keepdim=True).round().to(images.dtype)


def auroc(native: Evaluation, foreign: Evaluation) -> float:
    """The area under the ROC curve of bits/dim as a detector of foreign images."""
    inside, outside = native.estimate.bits_per_dim, foreign.estimate.bits_per_dim
    inside = inside.sort().values
    below = torch.searchsorted(inside, outside, right=False)
    not_above = torch.searchsorted(inside, outside, right=True)
    return float((below + not_above).double().mean()) / (2.0 * len(inside))


def pairs(rows: Sequence[Evaluation], found: Mapping[str, Sequence[Evaluation]]) -> list[tuple[Evaluation, Evaluation]]:
    """Rows of a comparison with the results of the same question on another data set: (native, foreign).

    Args:
        rows: The evaluations that are compared.
        found: All evaluations by run.
    """
    return [
        (row, other)
        for row in rows
        for other in found.get(str(row.model["run"]), ())
        if other.protocol.data.get("foreign") and other.protocol.asks == row.protocol.asks
    ]


def sentence(native: Evaluation, foreign: Evaluation) -> str:
    """The two means and the AUROC in one line."""
    a, b = native.estimate.mean(), foreign.estimate.mean()
    names = native.protocol.data["name"], foreign.protocol.data["name"]
    return (
        f"{names[0]}: {a.mean:.4f} bits/dim; {names[1]}: {b.mean:.4f} bits/dim ({len(foreign.estimate)} images); "
        f"AUROC of bits/dim {auroc(native, foreign):.4f}"
    )


def picture(native: Evaluation, foreign: Evaluation) -> Image:
    """Both histograms of bits/dim over one axis."""
    values = {
        f"{native.protocol.data['name']} ({native.protocol.data['split']})": native.estimate.bits_per_dim,
        f"{foreign.protocol.data['name']} (other)": foreign.estimate.bits_per_dim,
    }
    return histograms(values, f"{native.model['run']}: AUROC {auroc(native, foreign):.3f}")
