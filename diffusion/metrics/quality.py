"""All figures of samples against one reference, for commands and sweeps over samplers.

    reference = QualityReference.of(images, extractor, "digits", "train", levels=17, held_out=test)
    quality = reference.measure(samples)                     # uint8 level indices, as in the reference
    quality.frechet.value, quality.frechet.std_error, quality.kernel, quality.precision, ...

Figures are comparable if their references and numbers of samples are the same; `require_comparable` refuses others and
names the difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import UserError
from ..numerics.placement import for_numbers
from ..numerics.random import fixed_subset
from .copies import Copy, find_copies
from .extractor import BATCH, FeatureExtractor, Progress, extract
from .frechet import FrechetEstimate, frechet_estimate, image_keys
from .hubness import NEIGHBOURS, Hubness, hubness
from .kernel import KernelEstimate, KernelReference, kernel_distance
from .neighbours import Memorisation, density_coverage, memorisation, precision_recall
from .statistics import FeatureStatistics, Provenance, check_levels

FEWEST = 6  # the minimum number of samples
# All but the Frechet distance compare pairs of images: at most this many reference images are used.
NEIGHBOUR_IMAGES = 10_000


@dataclass(frozen=True, eq=False)
class Quality:
    """The figures of some samples.

    Args:
        samples: Their number.
        frechet: The Frechet distance (FID), its standard error, and the bias-corrected value.
        kernel: The kernel distance (KID) and its standard errors.
        precision, recall: Fractions, k = 3.
        density, coverage: k = 5.
        pixel_copies: The nearest-training-image check in pixels; None without held-out images.
        feature_copies: The same in features.
        copies: The exact and near copies of training images (`metrics.copies`); None if these are unknown.
        reference: The provenance of the reference.
        hubness: Of the features; None for too few samples.
    """

    samples: int
    frechet: FrechetEstimate
    kernel: KernelEstimate
    precision: float
    recall: float
    density: float
    coverage: float
    pixel_copies: Memorisation | None
    feature_copies: Memorisation | None
    copies: Sequence[Copy] | None
    reference: Provenance
    hubness: Hubness | None = None

    def figures(self) -> dict[str, float]:
        """The figures by short names, as a flat dict for a table, a log or a plot."""
        found = {
            "fid": self.frechet.value,
            "fid_sem": self.frechet.std_error,
            "fid_corrected": self.frechet.corrected,
            "kid": self.kernel.value,
            "kid_sem": self.kernel.std_error,
            "kid_sem_both": self.kernel.std_error_both,
            "precision": self.precision,
            "recall": self.recall,
            "density": self.density,
            "coverage": self.coverage,
        }
        for space, copies in (("pixels", self.pixel_copies), ("features", self.feature_copies)):
            if copies is not None:
                found |= {
                    f"near_training_{space}": copies.share,
                    f"near_training_{space}_sem": copies.std_error,
                    f"near_training_{space}_expected": copies.expected,
                    f"near_training_{space}_threshold": copies.threshold,
                }
        if self.copies is not None:
            exact = sum(copy.exact for copy in self.copies)
            found |= {"copies_exact": float(exact), "copies_near": float(len(self.copies) - exact)}
        if self.hubness is not None:
            hubs = self.hubness
            found |= {"hubness": hubs.skewness, "hubness_normal": hubs.of_normal, "hubness_normal_std": hubs.spread}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Figures and provenance as plain values."""
        return {"samples": self.samples, **self.figures(), "reference": asdict(self.reference)}


@dataclass(frozen=True, eq=False)
class QualityReference:
    """Reference images that samples are compared with, and their features; made by `of`.

    Args:
        extractor: The feature network.
        images: The reference, mirrored ones included, uint8 (M, C, H, W).
        features: Their features, shape (M, d), on the device of all computations.
        statistics: Their statistics, with the provenance.
        held_out: Images of the same law that no model was trained on, and their features; None without.
        training: The training images searched for copies, and whether their mirror images count; None without.
    """

    extractor: FeatureExtractor
    images: UInt8[Tensor, " m c h w"]
    features: Float[Tensor, " m d"]
    statistics: FeatureStatistics
    held_out: tuple[Tensor, Tensor] | None
    training: tuple[Tensor, bool] | None = None

    @cached_property
    def kernel_reference(self) -> KernelReference:
        """What KID takes, summed once for all samples."""
        return KernelReference(spread(self.features, NEIGHBOUR_IMAGES))

    @classmethod
    def of(
        cls,
        images: Any,
        extractor: FeatureExtractor,
        data: str,
        split: str,
        levels: int,
        held_out: UInt8[Tensor, " t c h w"] | None = None,
        flips: bool = False,
        mirrored: bool = False,
        features: Float[Tensor, " m d"] | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = BATCH,
        progress: Progress | None = None,
    ) -> QualityReference:
        """A reference, with its features computed or given.

        Args:
            images: Level indices, shape (N, C, H, W).
            extractor: The feature network.
            data, split: Their names.
            levels: The number of values a channel can take.
            held_out: Fresh images, for the nearest-training-image check.
            flips: Whether to include the mirror image of each.
            mirrored: Whether models are trained on mirror images, so that these also count as copies.
            features: Of the images (followed by their mirror images), if already computed.
            device: Where to compute.
            batch_size: Images per call of the extractor.
            progress: Called with (images done, images in all).

        Raises:
            UserError: For images that are not level indices below `levels`.
        """
        check_levels("images", images)
        if len(images) and int(images.max()) >= levels:
            raise UserError(f"images: found level {int(images.max())}; must be below {levels}")
        provenance = describe(images, extractor, data, split, levels, flips)
        training = (images, mirrored or flips) if split == "train" else None
        images = with_flips(images, flips)
        if features is None:
            features = extract(extractor, images, device, batch_size, progress)
        elif len(features) != len(images):
            raise UserError(f"features: found {len(features)} for {len(images)} images")
        features = features.to(for_numbers(torch.device(device)))
        fresh = None
        if held_out is not None and len(held_out):
            fresh = held_out, extract(extractor, held_out, device, batch_size)
        statistics = FeatureStatistics.of(features, provenance)
        return cls(extractor, images, features, statistics, fresh, training)

    @property
    def provenance(self) -> Provenance:
        """The provenance of the reference."""
        assert self.statistics.provenance is not None
        return self.statistics.provenance

    def without_held_out(self) -> QualityReference:
        """The same without the nearest-training-image check, meaningless for the held-out images themselves."""
        return replace(self, held_out=None)

    def counting(self, mirrored: bool) -> QualityReference:
        """The same, with or without mirror images of training images as copies; with `flips` they always count."""
        if self.training is None:
            return self
        return replace(self, training=(self.training[0], mirrored or self.provenance.flips))

    @torch.no_grad()
    def measure(self, samples: Any, batch_size: int = BATCH, progress: Progress | None = None) -> Quality:
        """All figures of samples: level indices, uint8, with the reference's shape and levels.

        Raises:
            UserError: For samples of another shape, fewer than 6, or with levels beyond the reference's.
        """
        check_levels("samples", samples)
        shape = self.provenance.shape
        if tuple(samples.shape[1:]) != shape:
            raise UserError(f"samples: found images of {tuple(samples.shape[1:])}; the reference's are {shape}")
        if len(samples) < FEWEST:
            raise UserError(f"samples: found {len(samples)}; at least {FEWEST} are needed, and 1,000 or more advised")
        if int(samples.max()) >= self.provenance.levels:
            raise UserError(f"samples: found level {int(samples.max())}; must be below {self.provenance.levels}")
        device = self.features.device
        features = extract(self.extractor, samples, device, batch_size, progress)
        some = spread(self.features, NEIGHBOUR_IMAGES)
        near_pixels = near_features = copies = known = None
        if self.held_out is not None:
            fresh, fresh_features = (spread(part, max(len(samples), 1000)) for part in self.held_out)
            near_pixels = memorisation(samples.to(device), self.images, fresh.to(device))
            near_features = memorisation(features, self.features, fresh_features)
            known = None if self.provenance.flips else (near_pixels.distances, near_pixels.neighbours)
        if self.training is not None:
            copies = find_copies(samples.to(device), *self.training, known)
        return Quality(
            len(samples),
            frechet_estimate(features, self.statistics, keys=image_keys(samples)),
            kernel_distance(features, self.kernel_reference),
            *precision_recall(features, some),
            *density_coverage(features, some),
            near_pixels,
            near_features,
            copies,
            self.provenance,
            hubness(features) if len(features) > NEIGHBOURS + 1 else None,
        )


def describe(
    images: UInt8[Tensor, " n c h w"], extractor: FeatureExtractor, data: str, split: str, levels: int, flips: bool
) -> Provenance:
    """The provenance of the features of images."""
    return Provenance(
        data=data,
        split=split,
        images=len(images),
        sha256=hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest(),
        flips=flips,
        shape=tuple(images.shape[1:]),
        levels=levels,
        extractor=extractor.name,
        extractor_sha256=extractor.digest(),
    )


def with_flips(images: UInt8[Tensor, " n c h w"], flips: bool) -> UInt8[Tensor, " m c h w"]:
    """The images, followed by their mirror images if `flips`."""
    return torch.cat((images, images.flip(-1))) if flips else images


def spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` rows, the first in the fixed order (`random.fixed_order`)."""
    return rows if len(rows) <= count else rows[fixed_subset(len(rows), count).to(rows.device)]


def require_comparable(reference: Provenance, samples: int, other: Provenance, other_samples: int) -> None:
    """Refuse to compare figures whose references or numbers of samples differ."""
    reference.require_like(other, asdict(reference), "quality")
    if samples != other_samples:
        raise UserError(
            f"quality: not comparable, unlike numbers of samples ({samples}, {other_samples}), on which the Frechet "
            "distance's bias depends"
        )
