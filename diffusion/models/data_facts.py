"""What a model must know about its data: stored with its weights, so that it is rebuilt from its file alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..data import ArrayData, ImageData, SplitData, Toy
from ..data.class_names import names_of, numbered
from ..data.normalizer import Normalizer
from ..data.splits import SPLITS
from ..networks.parts import Part
from ..storage.records import reading

# Of one sample; no image that a network is trained on has more.
_MOST_NUMBERS = 2**28


@dataclass(frozen=True)
class DataFacts:
    """What a model knows of its data.

    Args:
        name: The name of the data set.
        shape: The shape of one sample.
        levels: The number of levels of a pixel; None for continuous data.
        num_classes: The number of classes, 0 without labels.
        provenance: Where the data came from, as plain values.
        normalizer: The map from continuous data to the units of the denoiser; None where these are the same.
        parts: Of what the model is conditioned on, where that is not the class of the data alone.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None
    num_classes: int
    provenance: dict[str, str | int | float] = field(default_factory=dict)
    normalizer: Normalizer | None = None
    parts: tuple[Part, ...] = ()

    @property
    def plain(self) -> dict[str, Any]:
        """Its plain values, without the normaliser and the parts."""
        return {name: getattr(self, name) for name in ("name", "shape", "levels", "num_classes", "provenance")}

    def to_json(self) -> str:
        """As text for a model file's metadata."""
        more: dict[str, Any] = {} if self.normalizer is None else {"normalizer": self.normalizer.to_plain()}
        more |= {"parts": [part.to_plain() for part in self.parts]} if self.parts else {}
        return json.dumps({**self.plain, **more})

    def differences(self, now: DataFacts) -> list[str]:
        """How the present data differ from these: number, shape, levels, classes, and SHA-256 of each split."""
        facts = (("name", self.name, now.name), ("classes", _classes(self), _classes(now)))
        found = [f"{what} {before} -> {after}" for what, before, after in facts if before != after]
        found += self.images_changed(now)
        return found + self.labels_changed(now.provenance) + self.conditions_changed(now.provenance)

    def labels_changed(self, provenance: Mapping[str, Any]) -> list[str]:
        """How the classes of images differ in data of this provenance."""
        return self._changed(provenance, "SHA-256 of the {} labels", "labels_sha256")

    def conditions_changed(self, provenance: Mapping[str, Any]) -> list[str]:
        """How the columns that a model is conditioned on differ in data of this provenance."""
        return self._changed(provenance, "SHA-256 of the {} conditions", "condition_sha256")

    def images_changed(self, now: DataFacts) -> list[str]:
        """How the present images differ from these, whatever they and their classes are called."""
        facts = (("shape", _by(self.shape), _by(now.shape)), ("levels", self.levels, now.levels))
        found = [f"{what} {before} -> {after}" for what, before, after in facts if before != after]
        found += self._changed(now.provenance, "number of {} images", "images")
        return found + self._changed(now.provenance, "SHA-256 of the {} images", "sha256")

    def _changed(self, provenance: Mapping[str, Any], what: str, key: str) -> list[str]:
        """Where both provenances say something of a split, and not the same."""
        both = (self.provenance, provenance)
        values = [(split, *(of.get(f"{split}_{key}") for of in both)) for split in SPLITS]
        return [
            f"{what.format(split)} {_short(before)} -> {_short(after)}"
            for split, before, after in values
            if before is not None and after is not None and before != after
        ]

    @classmethod
    def from_json(cls, text: str) -> DataFacts:
        """The inverse of `to_json`.

        Raises:
            UserError: For a text that is not of `to_json`.
        """
        with reading("not the facts of a data set"):
            values = json.loads(text)
            normalizer, parts = values.pop("normalizer", None), values.pop("parts", [])
            facts = cls(**{**values, "shape": tuple(values["shape"])})
            counts = (*facts.shape, facts.num_classes, 1 if facts.levels is None else facts.levels)
            sound = isinstance(facts.name, str) and isinstance(facts.provenance, dict) and facts.shape != ()
            sound = sound and all(isinstance(n, int) and n >= 0 for n in counts)
            if not (sound and math.prod(facts.shape) <= _MOST_NUMBERS):
                raise ValueError("a name, a shape, numbers and a provenance are needed")
            facts = replace(facts, parts=tuple(map(Part.from_plain, parts)))
            names = [part.name for part in facts.parts]
            if len(set(names)) < len(names) or any(
                len(part.sides) not in (0, len(facts.shape) - 1) for part in facts.parts
            ):
                raise ValueError("parts of a condition have names of their own, and fields the sides of the data")
            if normalizer is not None:
                if facts.levels is not None:
                    raise ValueError("levels have no normaliser")
                facts = replace(facts, normalizer=Normalizer.from_plain(normalizer, facts.shape))
        return facts


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _classes(facts: DataFacts) -> str:
    return numbered(names_of(facts.provenance, facts.num_classes)) or "none"


def _short(value: str | int | float) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else f"{value:,}"


@dataclass(frozen=True, eq=False)
class Data:
    """The data of a run: images or numbers with splits, or a distribution that data are drawn from as needed.

    Exactly one of `images`, `array` and `toy` is given.
    """

    facts: DataFacts
    images: ImageData | None = None
    array: ArrayData | None = None
    toy: Toy | None = None

    @property
    def split(self) -> SplitData | None:
        """The images or the array: data with splits; None where data are drawn."""
        return self.array if self.images is None else self.images
