"""What a model is conditioned on, of the rows of its data: columns of the source, classes, and functions of the image.

downsample:N    the means of squares of N x N pixels (super-resolution); of signals and volumes along all sides
grey            the luma of a colour image (colourising)
mask            the image where it is known, zeros elsewhere, and 1 where it is known (inpainting): all but a rectangle
                at random, from a quarter to three quarters of each side; of vectors all but some entries, from one to
                all but one, as a vector of twice the length

Of arrays, which have units, what a mask hides is their channel's mean (of vectors the entry's) in place of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import FUNCTIONS, DenoiserConfig
from ..data import SplitData, augment
from ..data.arrays import ARRAY
from ..data.class_names import names_of
from ..data.files.raw_images import Column
from ..denoisers.condition import LABEL
from ..denoisers.inverse_problems import Downsample, Grey
from ..errors import UserError
from ..likelihood.dequantization import Dequantizer
from ..networks.parts import CLASSES, FIELD, VECTOR, Part
from ..numerics import random

DOWNSAMPLE, GREY = "downsample", "grey"
_SCALED_BY = 2**24  # numbers of arrays at most, by which their functions are scaled
_LEAST = 1e-30  # of a mean or a deviation
_SMALLEST = 1e-9  # of a deviation, relative to the entry's own mean: rounding is not magnified


def function_of(name: str) -> Callable[[Tensor], Tensor] | None:
    """The function of data (B, C, *sides), images in [-1, 1], that a part is by its name; None for other parts, and for
    `mask`, which is one of a mask, too (`masked`)."""
    kind, _, number = name.partition(":")
    return Downsample(int(number)) if kind == DOWNSAMPLE else Grey() if kind == GREY else None


def masked(x: Tensor, known: Tensor, mean: Sequence[float] = (0.0,)) -> Tensor:
    """The field of `mask`, (B, C + 1, *sides): x where it is known, else its channel's mean, and `known`, 0 and 1.

    Of vectors it is a vector, (B, 2 D), as each entry is known by itself.
    """
    hidden = torch.tensor(mean, dtype=x.dtype, device=x.device).reshape(-1, *(1,) * (x.ndim - 2))
    known = known.expand(len(x), 1 if x.ndim > 2 else x.shape[1], *x.shape[2:])
    return torch.cat((torch.where(known > 0, x, hidden), known.to(x.dtype)), 1)


def known_at_random(shape: Sequence[int], seed: int, keys: Tensor, step: int) -> Tensor:
    """Where data of a shape are known at random, 1 or 0: (B, 1, *sides), of vectors (B, D)."""
    return rectangles(shape[1:], seed, keys, step) if len(shape) > 1 else some_entries(shape[0], seed, keys, step)


def some_entries(count: int, seed: int, keys: Tensor, step: int) -> Tensor:
    """0 at entries at random, from one to all but one of them, 1 at the others, (B, D); of (seed, key, step)."""
    u = random.uniform(seed, keys, step, (count + 1,), random.STREAM_MASK, torch.float64)
    hidden = 1.0 + (u[:, count:] * (count - 1)).floor()
    return (u[:, :count].argsort(1).argsort(1) >= hidden).float()


def rectangles(sides: Sequence[int], seed: int, keys: Tensor, step: int) -> Tensor:
    """1 outside of a rectangle at random, 0 in it, (B, 1, H, W); a function of (seed, key, step)."""
    u = random.uniform(seed, keys, step, (2, len(sides)), random.STREAM_MASK, torch.float64)
    hidden = torch.ones((), dtype=torch.bool, device=u.device)
    for axis, side in enumerate(sides):
        length = (side * (0.25 + 0.5 * u[:, 0, axis])).round().clamp(1, side)
        first = (u[:, 1, axis] * (side - length + 1.0)).floor()
        place = torch.arange(side, device=u.device)
        inside = (place >= first[:, None]) & (place < (first + length)[:, None])
        hidden = hidden & inside.reshape(len(u), *(side if i == axis else 1 for i, side in enumerate(sides)))
    return (~hidden)[:, None].float()


def is_function(name: str) -> bool:
    """Whether a part is a function of the image, by its name."""
    return name.partition(":")[0] in [known.partition(":")[0] for known in FUNCTIONS]


def columns_of(denoiser: DenoiserConfig) -> tuple[str, ...]:
    """The parts that are read from the source of the data."""
    return tuple(name for name in denoiser.parts if name != LABEL and not is_function(name))


def parts_of(names: Sequence[str], data: SplitData) -> tuple[Part, ...]:
    """The parts of a condition by their names, with the scale that they have in the training part of the data.

    None where the condition is the class of the data alone.

    Raises:
        UserError: For functions of data that are no images, or of images of other sizes or channels, and a class where
            the data have none.
    """
    if tuple(names) in ((), (LABEL,)):
        return ()
    return tuple(_part(name, data) for name in names)


def no_labels(data: str) -> str:
    """That data of this name have no labels, and where labels are read."""
    of_files = "folders of classes, or a column 'label' of labels.csv; " if data == "folder" else ""
    there = f" ({of_files}labels or y of an .npz)" if data in ("folder", ARRAY) else ""
    return f"the data '{data}' have no labels{there}"


def _part(name: str, data: SplitData) -> Part:
    if name == LABEL:
        if not data.num_classes:
            raise UserError(f"denoiser.condition: found 'label'; {no_labels(data.name)}")
        return Part(name, CLASSES, data.num_classes, names=tuple(names_of(data.provenance, data.num_classes)))
    if is_function(name):
        return _of_function(name, data)
    column = data.columns[name]["train"]
    values = column.values
    if column.kind == CLASSES:
        return Part(name, CLASSES, column.size, names=column.names)
    if column.kind == FIELD and values.ndim != 1 + len(data.shape):
        raise UserError(
            f"denoiser.condition: '{name}' has {values.ndim - 2} sides, and the data '{data.name}' have "
            f"{len(data.shape) - 1}"
        )
    if column.levels is not None:
        return _unit_field(name, values)
    mean, std = _scale(name, values)
    return Part(name, column.kind, column.size, tuple(values.shape[2:]), mean, std)


def _scale(name: str, values: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each entry or channel, (B, C, *sides), where it is known."""
    numbers = values.double().transpose(0, 1).flatten(1)
    known = numbers[:, ~numbers.isnan().any(0)]
    if not known.shape[1]:
        raise UserError(f"denoiser.condition: '{name}' is known of no row of the training part")
    std, mean = torch.std_mean(known, dim=1, correction=0)
    sizes = torch.cat((std[std > 0], mean.abs()[mean != 0]))
    if not bool(((sizes > _LEAST) & (sizes < 1.0 / _LEAST)).all()):  # networks compute in float32; also refuses nan
        raise UserError(f"denoiser.condition: '{name}' has means or deviations beyond {_LEAST:g} to {1.0 / _LEAST:g}; "
                        "give it other units")  # fmt: skip
    scale = torch.where(std <= _SMALLEST * mean.abs(), 1.0, std)  # each by itself: units may be any
    return tuple(mean.tolist()), tuple(scale.tolist())


def _of_function(name: str, data: SplitData) -> Part:
    """A part that is a function of the data, with the scale that it has in their training part, if they have units."""
    found_text, function, sides = f"denoiser.condition: found '{name}'", function_of(name), len(data.shape) - 1
    if (not sides and (function is not None or data.shape[0] < 2)) or (isinstance(function, Grey) and sides != 2):
        of = "of colour images" if sides else "of images, signals and volumes"
        of += "" if function is not None else ", and of vectors of two or more entries"
        raise UserError(f"{found_text}, which is {of}; '{data.name}' has the shape {data.shape}")
    x = torch.zeros(1, *data.shape)
    if data.levels is None:
        x = data.train[random.fixed_subset(len(data.train), max(2, _SCALED_BY // x.numel()))]
    try:
        made = x if function is None else function(x)
    except UserError as error:
        raise UserError(f"{found_text}: {error}") from None
    mean, std = ((0.0,) * made.shape[1], (1.0,) * made.shape[1]) if data.levels is not None else _scale(name, made)
    if function is None:  # and where it is known
        flags = 1 if sides else len(mean)
        mean, std = (*mean, *(0.0,) * flags), (*std, *(1.0,) * flags)
    return Part(name, FIELD if sides else VECTOR, len(mean), tuple(made.shape[2:]), mean, std)


def _unit_field(name: str, values: Tensor) -> Part:
    """A field of values in [-1, 1], which are left as they are."""
    size = values.shape[1]
    return Part(name, FIELD, size, tuple(values.shape[2:]), (0.0,) * size, (1.0,) * size)


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of the rows of a data set.

    Args:
        parts: Of the condition.
        data: The data set, with the columns that the parts name.
    """

    parts: tuple[Part, ...]
    data: SplitData
    _held: dict[tuple[str, str, torch.device], Tensor] = field(init=False, repr=False, default_factory=dict)

    def of(
        self, split: str, rows: Tensor, x: Tensor, seed: int, keys: Tensor, step: int = 0, flip: bool = False
    ) -> tuple[Tensor, ...]:
        """The tensors of all parts.

        Args:
            split: The split.
            rows: The rows of it.
            x: Their data, as the model is to see them: mirrored where they are.
            seed, keys, step: Of what is drawn: masks, and what was mirrored.
            flip: Whether x was mirrored at random (`data.augment`); fields are alike.
        """
        return tuple(self._of(part, split, rows, x, seed, keys, step, flip) for part in self.parts)

    def _of(
        self, part: Part, split: str, rows: Tensor, x: Tensor, seed: int, keys: Tensor, step: int, flip: bool
    ) -> Tensor:
        if is_function(part.name):
            x = x if self.data.levels is None else Dequantizer(self.data.levels).center(x)
            if (function := function_of(part.name)) is not None:
                return function(x)
            return masked(x, known_at_random(x.shape[1:], seed, keys, step).to(x.device), part.mean[: x.shape[1]])
        found = self._values(part.name, split, rows.device)[rows]
        levels = None if part.name == LABEL else self.data.columns[part.name][split].levels
        if part.kind != FIELD:
            return found
        found = augment(found, seed, step, keys, flip)
        return found if levels is None else found.float() * (2.0 / (levels - 1)) - 1.0

    def _values(self, name: str, split: str, device: torch.device) -> Tensor:
        held = self._held
        if (name, split, device) not in held:
            column: Column | None = None if name == LABEL else self.data.columns[name][split]
            values = getattr(self.data, f"{split}_labels") if column is None else column.values
            assert isinstance(values, Tensor)
            held[name, split, device] = values.to(device)
        return held[name, split, device]
