"""Which feature network a data set is measured by, and the features of its reference, kept for the next time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..data import ImageData
from ..errors import UserError
from ..metrics import ClassifierFeatures, FeatureExtractor, Provenance, load_inception, torchvision_inception
from ..storage import runs, tensor_files
from ..storage.runs import user_cache
from .preflight import INCEPTION, check_features


def choose_extractor(name: str | None, data: ImageData, download: bool) -> FeatureExtractor:
    """The feature network of a name or a file; by default the shipped one of the data set, or Inception.

    Raises:
        UserError: For a name or file that is none, weights that are absent, or a network of other images.
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


class FeatureCache:
    """Features of references, a file each in $XDG_CACHE_HOME/diffusion (by default ~/.cache/diffusion)."""

    def __init__(self) -> None:
        self.folder = user_cache("features")

    def _path(self, provenance: Provenance) -> Path:
        return self.folder / f"{hashlib.sha256(_text(provenance).encode()).hexdigest()[:16]}.safetensors"

    def read(self, provenance: Provenance) -> Tensor | None:
        """The features of this very provenance; None where there are none, or they are damaged."""
        try:
            tensors, metadata = tensor_files.read(self._path(provenance), "features", "features_of")
        except UserError:
            return None
        return tensors.get("features") if metadata["features_of"] == _text(provenance) else None

    def write(self, provenance: Provenance, features: Tensor) -> None:
        """Keep features; a cache that cannot be written to is none."""
        try:
            found = {"features": features.to(torch.float32)}
            tensor_files.write(self._path(provenance), found, {"features_of": _text(provenance)})
        except OSError:
            return


def _text(provenance: Provenance) -> str:
    return json.dumps(asdict(provenance), sort_keys=True)
