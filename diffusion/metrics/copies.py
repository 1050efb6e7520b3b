"""Samples that are exact or near copies of training images, counted individually.

The fraction of samples near training images (`neighbours.memorisation`) compares a model with one that has not
memorised; a few copies among many samples are within its error. Here each is found:

    exact   all pixels equal those of a training image
    near    d(sample, x) < d(x, x') / 3, x the nearest training image, x' the nearest one to x that is not equal to it

in root mean squares of pixels. The rule is the ratio of Yoon et al. 2023 ("Diffusion probabilistic models generalize
when they fail to memorize"), relative to the training image's own neighbour: fresh images are about as far from the
training set as its images are from each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .neighbours import nearest_in, smallest_in
from .statistics import check_levels

NEAR = 1.0 / 3.0


@dataclass(frozen=True)
class Copy:
    """A sample that is a training image, or nearly so.

    Args:
        sample: Its index among the samples.
        image: The row of the training image.
        mirrored: Whether it is the mirror image of that.
        distance: The distance between the two in grey levels, root mean square over pixels; 0 for an exact copy.
        own: The distance of the training image to the nearest other one, likewise.
    """

    sample: int
    image: int
    mirrored: bool
    distance: float
    own: float

    @property
    def exact(self) -> bool:
        """Whether every pixel is the same."""
        return self.distance == 0.0


def find_copies(
    samples: Any,
    training: Any,
    mirrored: bool = False,
    found: tuple[Tensor, Tensor] | None = None,
) -> list[Copy]:
    """The samples that are exact or near copies (see the module docstring), nearest first.

    Args:
        samples: Level indices, shape (N, C, H, W).
        training: The training images, shape (M, C, H, W).
        mirrored: Whether mirror images of these also count, as an augmentation.
        found: The result of `nearest_in(samples, training)`, if known.

    Raises:
        UserError: For images that are not level indices, different shapes, or no training images.
    """
    check_levels("samples", samples)
    check_levels("training", training)
    if samples.shape[1:] != training.shape[1:] or not len(training):
        shapes = f"{tuple(samples.shape)} and {tuple(training.shape)}"
        raise UserError(f"samples, training: found shapes {shapes}; needs images of one shape, and some to look among")
    distances, images = found or nearest_in(samples, training)
    turned = torch.zeros_like(images, dtype=torch.bool)
    if mirrored:
        others, other_images = nearest_in(samples.flip(-1), training)
        turned = others < distances
        distances, images = torch.where(turned, others, distances), torch.where(turned, other_images, images)
    nearest, place = images.unique(return_inverse=True)
    own = _nearest_unlike(training[nearest.to(training.device)].to(distances.device), training)[place]
    rows = (distances == 0.0) | (distances < NEAR * own)
    pixels = math.sqrt(training[0].numel())
    copies = [
        Copy(row, int(images[row]), bool(turned[row]), float(distances[row]) / pixels, float(own[row]) / pixels)
        for row in rows.nonzero()[:, 0].tolist()
    ]
    return sorted(copies, key=lambda copy: (copy.distance, copy.sample))


def _nearest_unlike(some: Tensor, images: Tensor) -> Float[Tensor, " k"]:
    """The distance of some of the images to the nearest different one; 0 if all are equal."""
    found = torch.full((len(some),), math.inf, dtype=torch.float64, device=some.device)
    rows, count = torch.arange(len(some), device=some.device), 2
    while len(rows):  # rarely twice: an image that occurs more than once is its own neighbour
        distances = smallest_in(some[rows], images, min(count, len(images)))
        found[rows] = torch.where(distances > 0.0, distances, math.inf).amin(1)
        rows = rows[found[rows].isinf()] if count < len(images) else rows[:0]
        count *= 8
    return torch.where(found.isinf(), 0.0, found)
