"""What images are measured under: their own conditions, or one for all; and what their own tell of an image.

    I(x; c) = E[log p(x | c) - log p(x)],

both of one model, with a condition and without, on the same images, noises and times: the difference is paired, so that
what both share cancels, and its interval is that of the differences (`estimate.mean_interval`). For laws that are the
model's own it is the mutual information of data and condition (Cover & Thomas 2006, eq. 2.36) plus the excess of the
model without condition, less that of the model with it. Under one condition for all images the difference is no
mutual information, and is reported in bits/dim.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data import SplitData
from ...denoisers.condition import LABEL
from ...errors import UserError
from ...likelihood import Estimate, Interval
from ...likelihood.estimate import mean_interval
from ...models import DiffusionModel
from ...models.conditions import Conditions
from ...models.trained_model import TrainedModel
from ...networks.parts import CLASSES, Part
from ...numerics.random import fixed_order
from ..sample.condition import OPTION, check_count, named_part, parts_of, read_conditions
from ..sample.record import image_digests
from ..subjects import rows_of

CONDITION = "condition"
DATA, NONE = "data", "none"
_ITS = "its "  # of an image's own conditions
_SEED = 0  # of the masks of images that are measured


@dataclass(frozen=True, eq=False)
class Given:
    """The conditions of some images.

    Args:
        values: By part: one entry for each image, or one for all.
        requested: As a record has it: `data`, or the values of the command line.
        digest: The SHA-256 of all values.
        in_words: In words, without parts that are none: `its label, mask`, or `label=3`.
    """

    values: Mapping[str, Tensor | None]
    requested: str | Sequence[str]
    digest: str
    in_words: str

    def of(self, places: Tensor) -> dict[str, Tensor | None]:
        """The conditions of the images at these places."""
        return {name: v if v is None or len(v) == 1 else v[places] for name, v in self.values.items()}


def given_to(
    model: TrainedModel, data: SplitData, images: Tensor, identity: Mapping[str, Any], requested: Sequence[str] | None
) -> Given | None:
    """The conditions that images of a split are measured under; None for none.

    Args:
        model: The model.
        data: The data that it was trained on.
        images: Those that are measured.
        identity: What identifies them.
        requested: `data`, `none`, or values as in sample.py; by default `data` for a model that is conditioned on more
            than the class, else `none`.

    Raises:
        UserError: For conditions that the model does not take, or that the data do not have.
    """
    requested, parts = _requested(model, requested), parts_of(model)
    if requested == [NONE]:
        return None
    if requested != [DATA] or not parts:
        return _stated(model, parts, requested, len(images), "images")
    split = str(identity["split"])
    if any(part.name == LABEL for part in parts) and getattr(data, f"{split}_labels") is None:
        raise UserError(f"{OPTION}: found 'data'; '{data.name}' has no labels")
    rows = rows_of(identity)
    return _own(parts, _of_data(model, parts, data).of(split, rows, images, _SEED, rows))


def given_to_samples(
    model: TrainedModel, data: SplitData, requested: Sequence[str] | None, n: int
) -> tuple[Given | None, Tensor | None]:
    """The conditions that n samples are drawn under, and whose they are.

    Args:
        model: The model.
        data: The data that it was trained on.
        requested: As `given_to`; `data` takes the conditions of test images, which the model has not seen, in the fixed
            order, from the beginning again where there are too few.
        n: The number of samples.

    Returns:
        The conditions, None for none, and the rows of the test images, None where they are of none.
    """
    requested, parts = _requested(model, requested), parts_of(model)
    if requested == [NONE]:
        return None, None
    if requested != [DATA] or not parts:
        return _stated(model, parts, requested, n, "samples"), None
    if not len(data.test):
        raise UserError(f"{OPTION}: found 'data'; '{data.name}' has no test images to take conditions from")
    order = fixed_order(torch.arange(len(data.test)))
    rows = order[torch.arange(n) % len(order)]
    return _own(parts, _of_data(model, parts, data).of("test", rows, data.test[rows], _SEED, torch.arange(n))), rows


def _of_data(model: TrainedModel, parts: Sequence[Part], data: SplitData) -> Conditions:
    """The conditions of the rows of a model's data.

    Raises:
        UserError: For others than those that it was trained on.
    """
    changed = model.facts.conditions_changed(data.provenance)
    if any(part.name == LABEL for part in parts):
        changed = [*model.facts.labels_changed(data.provenance), *changed]
    if changed:
        raise UserError(
            f"{OPTION}: found 'data'; the conditions of '{data.name}' have changed since the training of "
            f"{model.source} ({changed[0]}); accepted: none, values, or the old ones (--data PATH, where they are)"
        )
    return Conditions(tuple(parts), data)


def _requested(model: TrainedModel, requested: Sequence[str] | None) -> list[str]:
    """What is requested; by default `data` for a model that is conditioned on more than the class, else `none`."""
    if requested is not None:
        return list(requested)
    return [DATA] if isinstance(model, DiffusionModel) and model.denoiser.parts else [NONE]


def _own(parts: Sequence[Part], tensors: Sequence[Tensor]) -> Given:
    """The data's own conditions."""
    values = {part.name: c for part, c in zip(parts, tensors, strict=True)}
    return Given(values, DATA, _digest(values), _in_words(parts, values))


def _stated(model: TrainedModel, parts: Sequence[Part], requested: Sequence[str], n: int, what: str) -> Given | None:
    """The conditions of the command line; None where all parts are none."""
    values = read_conditions(model, requested)
    check_count(values, n, what)
    if not (words := _in_words(parts, values, requested)):
        return None
    digest = _digest(values, image_digests({CONDITION: list(requested)}))
    return Given(values, sorted(requested), digest, words)


def _in_words(
    parts: Sequence[Part], values: Mapping[str, Tensor | None], requested: Sequence[str] | None = None
) -> str:
    """The conditions in words: the names of the data's own, or names and the requested values."""
    parts = sorted(parts, key=lambda part: part.name)
    there = [part for part in parts if (c := values.get(part.name)) is not None and not bool(part.is_none(c).all())]
    if requested is None:
        return f"{_ITS}{', '.join(part.name for part in there)}"
    texts = {part.name: text for part, text in (named_part(parts, text) for text in requested)}
    for part in there:
        c = values[part.name]
        if part.kind == CLASSES and c is not None and len(c) == 1:  # however it was written
            texts[part.name] = part.names[int(c)] if part.names else str(int(c))
    return ", ".join(f"{part.name}={texts[part.name]}" for part in there)


def _digest(values: Mapping[str, Tensor | None], files: Mapping[str, Any] | None = None) -> str:
    """The SHA-256 of the parts, in no order of theirs, and then of the files that they were read from."""
    found = hashlib.sha256()
    for name, value in sorted(values.items()):
        if value is not None:  # as a part that is left out
            found.update(f"{name} ".encode() + value.contiguous().cpu().numpy().tobytes())
    if files is not None:
        found.update(f"files {json.dumps(files)}".encode())
    return found.hexdigest()


def information(conditional: Estimate, none: Estimate) -> Interval:
    """I(x; c) in bits per sample, with its 95 % interval, from figures of the same data.

    Raises:
        UserError: Where the data are not the same.
    """
    a, b = conditional, none
    if a.indices is None or b.indices is None or not torch.equal(a.indices, b.indices):
        raise UserError("condition: figures of unlike data cannot be paired")
    return mean_interval((a.log_prob - b.log_prob) / math.log(2.0))


def information_line(name: str, conditional: Estimate, none: Estimate) -> str:
    """What images' own conditions tell, in a line."""
    parts = str(conditional.protocol[CONDITION]).removeprefix(_ITS)
    found, unit, scale = information(conditional, none), *_unit(none)
    there, without = (scale * of.mean().mean for of in (conditional, none))
    return (
        f"I(x; {parts}) by {name}: {found.mean:.4f} bits ({_interval(found)}), {_paired(conditional, none)}; "
        f"{there:.4f} {unit} with the condition, {without:.4f} without"
    )


def gain(conditional: Estimate, none: Estimate) -> Interval:
    """Bits/dim with no condition less those under one, with the 95 % interval, from figures of the same data.

    Raises:
        UserError: Where the data are not the same.
    """
    found = information(conditional, none)
    return Interval(*(number / none.dims for number in (found.mean, found.low, found.high, found.sem)))


def gain_line(name: str, conditional: Estimate, none: Estimate, given: Given) -> str:
    """What conditions of the user's choice change, in a line: no mutual information, as they are not the data's."""
    found, unit, scale = gain(conditional, none), *_unit(none)
    found = Interval(*(scale * number for number in (found.mean, found.low, found.high, found.sem)))
    there, without = (scale * of.mean().mean for of in (conditional, none))
    return (
        f"given {given.in_words}, by {name}: {there:.4f} {unit}, {without:.4f} with none: {found.mean:.4f} less "
        f"({_interval(found)}), {_paired(conditional, none)}"
    )


def _unit(estimate: Estimate) -> tuple[str, float]:
    return ("bits/dim", 1.0) if estimate.levels is not None else ("nats/dim", math.log(2.0))


def _interval(found: Interval) -> str:
    return f"{found.low:.4f} to {found.high:.4f}" if math.isfinite(found.low) else "unknown"  # of one sample


def _paired(conditional: Estimate, none: Estimate) -> str:
    bound = ", the difference of two bounds" if conditional.kind == "lower bound" else ""
    return f"paired on {len(none)} of the same data{bound}"
