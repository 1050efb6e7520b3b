"""The parts of a condition: classes, vectors and fields, and how a network takes them.

A condition is one tensor a part, with the samples as the first axis, in the user's units:

    classes   whole numbers (B,), 0 .. n - 1
    vector    real numbers (B, d)
    field     real numbers (B, C', *sides), joined to x as channels; of images in [-1, 1]

Of each sample a part may be none: for classes that is n, for the others NaN. What stands for none is learned, so that
training which drops parts at random also learns the law without them (Ho & Salimans 2022, arXiv 2207.12598).

Every part adds a vector to the embedding of the noise level. A field is brought to the sides of x by repeating its
entries, and its channels are further channels of the input (Saharia et al. 2021, arXiv 2104.07636), zeros where it is
none; what it adds to the embedding says only whether it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .layers import glorot

CLASSES, VECTOR, FIELD = "classes", "vector", "field"
KINDS = (CLASSES, VECTOR, FIELD)
LABEL = "label"  # the part that is the class of the data
_MOST = 2**20  # of classes, entries or channels; no model file may ask for more memory


@dataclass(frozen=True)
class Part:
    """One part of a condition.

    Args:
        name: What users call it.
        kind: `classes`, `vector` or `field`.
        size: The number of classes, of entries, or of channels.
        sides: Of a field, as it was in training; others are taken, too.
        mean, std: Of each entry of a vector, or channel of a field, in training: networks see (c - mean) / std.
        names: Of the classes, where they have names.

    Raises:
        UserError: For facts that do not fit together.
    """

    name: str
    kind: str
    size: int
    sides: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self):
        numbers = 0 if self.kind == CLASSES else self.size
        sound = isinstance(self.name, str) and self.kind in KINDS and all(isinstance(one, str) for one in self.names)
        sound = (
            sound and _whole(self.size) and all(map(_whole, self.sides)) and bool(self.sides) == (self.kind == FIELD)
        )
        sound = sound and len(self.mean) == len(self.std) == numbers and len(self.names) in (0, self.size)
        if not (sound and all(map(_finite, (*self.mean, *self.std))) and all(std > 0 for std in self.std)):
            raise UserError(
                f"condition: '{self.name}' is no part: a {self.kind} of {self.size} and its scale are needed"
            )

    def __str__(self) -> str:
        if self.kind == CLASSES:
            return f"{self.name} ({self.size:,} classes)"
        return f"{self.name} ({' x '.join(map(str, (self.size, *self.sides)))} numbers)"

    @property
    def is_image(self) -> bool:
        """Whether it is a field of images, of which networks see values in [-1, 1]."""
        return self.kind == FIELD and not any(self.mean) and all(std == 1.0 for std in self.std)

    @property
    def axes(self) -> int:
        """The axes of its tensor, the samples' among them."""
        return {CLASSES: 1, VECTOR: 2, FIELD: 2 + len(self.sides)}[self.kind]

    def none(self, n: int, like: Tensor | None = None) -> Tensor:
        """Its tensor for n samples of none; of a field with the sides of `like`, or of training."""
        if self.kind == CLASSES:
            return torch.full((n,), self.size, device=None if like is None else like.device)
        if like is not None:
            return torch.full_like(like[:1], math.nan).expand(n, *like.shape[1:])
        return torch.full((n, self.size, *self.sides), math.nan)

    def is_none(self, c: Tensor) -> Tensor:
        """Which samples are of none, (B,)."""
        return c == self.size if self.kind == CLASSES else torch.isnan(c.flatten(1)).any(1)

    def drop(self, c: Tensor, dropped: Tensor) -> Tensor:
        """Its tensor with those samples none, where `dropped` (B,) says so."""
        return torch.where(dropped.reshape(-1, *(1,) * (c.ndim - 1)), self.none(1, c), c)

    def to_plain(self) -> dict[str, Any]:
        """As plain values, for a model file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Part:
        """The inverse of `to_plain`; raises for what is not."""
        values: dict[str, Any] = {key: tuple(of) if isinstance(of, list) else of for key, of in plain.items()}
        return cls(**values)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def channels_of(parts: Sequence[Part]) -> int:
    """The channels that the fields among parts add to the input."""
    return sum(part.size for part in parts if part.kind == FIELD)


class PartEmbedding(nn.Module):
    """What a part adds to the embedding: of a class, of a vector by a perceptron, and of none.

    Args:
        part: The part.
        channels: Width of the embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, part: Part, channels: int) -> None:
        super().__init__()
        self.part = part
        rows = part.size + 1 if part.kind == CLASSES else 1
        self.rows = nn.Embedding(rows, channels)  # the last one is of none
        nn.init.normal_(self.rows.weight, std=0.02)
        if part.kind == VECTOR:
            self.dense_1, self.dense_2 = glorot(nn.Linear(part.size, channels)), glorot(nn.Linear(channels, channels))
        mean = torch.tensor(part.mean, dtype=torch.float64)
        high = mean.float()  # of devices without float64; the rest, as c may be far from 0 and of little spread
        self.register_buffer("mean", torch.stack((high, (mean - high.double()).float())), persistent=False)
        self.register_buffer("std", torch.tensor(part.std), persistent=False)

    def scaled(self, c: Tensor) -> Tensor:
        """(c - mean) / std in the dtype of the weights, zeros where it is none."""
        high, low, std = (of.reshape(1, -1, *(1,) * (c.ndim - 2)).to(c.device) for of in (*self.mean, self.std))
        known = self.part.is_none(c).logical_not().reshape(-1, *(1,) * (c.ndim - 1))
        return torch.where(known, ((c - high) - low) / std, 0.0).to(self.rows.weight.dtype)

    def forward(self, c: Tensor) -> Tensor:
        """Embed the tensor of the part as (B, channels)."""
        if self.part.kind == CLASSES:
            return self.rows(c)
        none = self.part.is_none(c)[:, None]
        if self.part.kind == FIELD:
            return none.to(self.rows.weight.dtype) * self.rows.weight
        embedding = self.dense_2(F.silu(self.dense_1(self.scaled(c))))
        return torch.where(none, self.rows.weight.to(embedding.dtype), embedding)


def as_parts(condition: Tensor | Sequence[Tensor] | None, parts: Sequence[Part], x: Tensor) -> tuple[Tensor, ...]:
    """The tensors of the parts; no condition is none of each.

    Raises:
        UserError: For another number of tensors.
    """
    if condition is None:
        return tuple(part.none(len(x)).to(x.device) for part in parts)
    given = (condition,) if isinstance(condition, Tensor) else tuple(condition)
    if len(given) != len(parts):
        raise UserError(f"cond: found {len(given)} parts; the network takes {len(parts)}")
    return given


def joined(x: Tensor, embeddings: Sequence[nn.Module], condition: Sequence[Tensor]) -> Tensor:
    """x with the channels of the fields among the parts of a condition behind its own."""
    fields = []
    for embedding, c in zip(embeddings, condition, strict=True):
        assert isinstance(embedding, PartEmbedding)
        if embedding.part.kind == FIELD:
            field = embedding.scaled(c).to(x.dtype)
            fields.append(field if field.shape[2:] == x.shape[2:] else F.interpolate(field, x.shape[2:]))
    return torch.cat((x, *fields), 1) if fields else x
