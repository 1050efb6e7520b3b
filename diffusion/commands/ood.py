"""Out of distribution: the likelihoods of two data sets under one model, and how well they tell the sets apart.

    AUROC = P(bits/dim of a foreign image > that of a native one) + P(equal) / 2

0.5 is chance. Below it the model holds the foreign images to be the likelier ones, which happens where they are simpler
(Nalisnick et al. 2019, arXiv 1810.09136).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..data import ImageData, image_names, load_images
from ..errors import UserError, did_you_mean
from .compare.figures import histograms
from .records import Evaluation
from .subjects import identify, images_of


def load(name: str, native: ImageData, split: str, count: int | None) -> tuple[Tensor, dict[str, Any]]:
    """The images of another data set, at the size and the levels of `native`, and what identifies them.

    Finer levels k of L' are read as the native floor(k L / L'), those of bins of equal width.

    Args:
        name: A named data set, or the path of a folder, .zip or .npz.
        native: The images that the model was trained on.
        split: Which images of the other set.
        count: How many at most, the first in the fixed order; None for all.

    Raises:
        UserError: For data that are not there, or have other channels or fewer levels.
    """
    size = native.shape[1]
    if name in image_names() and name != "folder":
        other = load_images(name, size=size)
    elif Path(name).exists():
        other = load_images("folder", path=name, size=size)
    else:
        names = [known for known in image_names() if known != "folder"]
        accepted = f"{', '.join(names)}, or a path of images"
        raise UserError(f"--ood: found '{name}'; accepted: {accepted}.{did_you_mean(name, names)}")
    if native.shape != other.shape:
        raise UserError(f"--ood: '{name}' has shape {other.shape}; the model's images have {native.shape}")
    if native.levels > other.levels:
        raise UserError(f"--ood: '{name}' has levels {other.levels}; the model's images have {native.levels}")
    available = len(getattr(other, split))
    images, identity = images_of(other, split, None if count is None else min(count, available))
    images = (images.int() * native.levels // other.levels).to(torch.uint8)
    return images, {**identity, **identify(images, Path(name).name, split, native.levels), "foreign": True}


def auroc(native: Evaluation, foreign: Evaluation) -> float:
    """The area under the ROC curve of bits/dim as a detector of foreign images."""
    inside, outside = native.estimate.bits_per_dim, foreign.estimate.bits_per_dim
    inside = inside.sort().values
    below = torch.searchsorted(inside, outside, right=False)
    not_above = torch.searchsorted(inside, outside, right=True)
    return float((below + not_above).double().mean()) / (2.0 * len(inside))


def pairs(rows: Sequence[Evaluation], found: Mapping[str, Sequence[Evaluation]]) -> list[tuple[Evaluation, Evaluation]]:
    """Rows of a comparison, each with what the same question found on another data set: (native, foreign).

    Args:
        rows: The evaluations that are compared.
        found: All evaluations by run.
    """

    def asks(e: Evaluation) -> tuple[object, ...]:
        return e.protocol.method, e.protocol.weights, repr(sorted(e.protocol.options.items()))

    return [
        (row, other)
        for row in rows
        for other in found.get(str(row.model["run"]), ())
        if other.protocol.data.get("foreign") and asks(other) == asks(row)
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
