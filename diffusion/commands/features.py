"""The feature network for a data set, and cached features of references."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import ImageData
from ..errors import UserError
from ..metrics import (
    ClassifierFeatures,
    FeatureExtractor,
    Provenance,
    QualityReference,
    describe,
    load_inception,
    torchvision_inception,
)
from ..storage import runs, tensor_files
from ..storage.records import digest
from ..storage.runs import user_cache
from .preflight import INCEPTION, check_features


def choose_extractor(name: str | None, data: ImageData, download: bool) -> FeatureExtractor:
    """The feature network given by name or file; by default the one shipped for the data set, else Inception.

    Raises:
        UserError: For an unknown name, an unusable file, missing weights, or a network for other images.
    """
    shipped = runs.shipped(runs.FEATURES)
    if name is None:
        fits = data.name in shipped and ClassifierFeatures.load(shipped[data.name]).shape == data.shape
        name = data.name if fits else INCEPTION
    check_features(name)
    if name == INCEPTION:
        return torchvision_inception(data.levels, download)
    if name in shipped:
        return _fitting(ClassifierFeatures.load(shipped[name]), data)
    if Path(name).suffix == ".safetensors":
        return _fitting(ClassifierFeatures.load(name), data)
    return load_inception(name, data.levels)


def _fitting(extractor: ClassifierFeatures, data: ImageData) -> ClassifierFeatures:
    if (extractor.shape, extractor.levels) != (data.shape, data.levels):
        raise UserError(
            f"--features: '{extractor.name}' is of images {extractor.shape} with {extractor.levels} levels; those of "
            f"'{data.name}' are {data.shape} with {data.levels}"
        )
    return extractor


def reference_of(data: ImageData, split: str, extractor: FeatureExtractor, **how: Any) -> QualityReference:
    """The images of a split as a reference; its features come from the cache, or go there.

    Args:
        data: All splits.
        split: Which.
        extractor: The feature network.
        how: As `QualityReference.of`.
    """
    images, cache = getattr(data, split), FeatureCache()
    provenance = describe(images, extractor, data.name, split, data.levels, how.get("flips", False))
    known = cache.read(provenance)
    made = QualityReference.of(images, extractor, data.name, split, data.levels, features=known, **how)
    if known is None:
        cache.write(provenance, made.features)
    return made


class FeatureCache:
    """Features of references, one file each in $XDG_CACHE_HOME/diffusion (default: ~/.cache/diffusion)."""

    def __init__(self) -> None:
        self.folder = user_cache("features")

    def _path(self, provenance: Provenance) -> Path:
        return self.folder / f"{digest(asdict(provenance), 16)}.safetensors"

    def read(self, provenance: Provenance) -> Tensor | None:
        """The features for exactly this provenance; None if there are none, or they are damaged."""
        try:
            tensors, metadata = tensor_files.read(self._path(provenance), "features", "features_of")
        except UserError:
            return None
        return tensors.get("features") if metadata["features_of"] == _text(provenance) else None

    def write(self, provenance: Provenance, features: Tensor) -> None:
        """Store features; a cache that cannot be written is skipped."""
        try:
            found = {"features": features.to(torch.float32)}
            tensor_files.write(self._path(provenance), found, {"features_of": _text(provenance)})
        except OSError:
            return


def _text(provenance: Provenance) -> str:
    return json.dumps(asdict(provenance), sort_keys=True)
