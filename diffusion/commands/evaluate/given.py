"""What images are measured under: their own conditions, or one for all; and what a condition tells of an image.

    I(x; c) = E[log p(x | c) - log p(x)],

both of one model, with a condition and without, on the same images, noises and times: the difference is paired, so that
what both share cancels, and its interval is that of the differences (`estimate.mean_interval`). For laws that are the
model's own it is the mutual information of data and condition (Cover & Thomas 2006, eq. 2.36) plus the excess of the
model without condition, less that of the model with it.
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
from ...numerics.random import fixed_order
from ..sample.condition import OPTION, check_count, parts_of, read_conditions
from ..sample.record import image_digests
from ..subjects import rows_of

CONDITION = "condition"
DATA, NONE = "data", "none"
_SEED = 0  # of the masks of images that are measured


@dataclass(frozen=True, eq=False)
class Given:
    """The conditions of some images.

    Args:
        values: By part: one entry for each image, or one for all.
        asked: As a record has it: `data`, or the values of the command line.
        digest: The SHA-256 of all values.
    """

    values: Mapping[str, Tensor | None]
    asked: str | Sequence[str]
    digest: str

    def of(self, places: Tensor) -> dict[str, Tensor | None]:
        """The conditions of the images at these places."""
        return {name: v if v is None or len(v) == 1 else v[places] for name, v in self.values.items()}


def given_to(
    model: TrainedModel, data: SplitData, images: Tensor, identity: Mapping[str, Any], asked: Sequence[str] | None
) -> Given | None:
    """The conditions that images of a split are measured under; None for none.

    Args:
        model: The model.
        data: The data that it was trained on.
        images: Those that are measured.
        identity: What identifies them.
        asked: `data`, `none`, or values as in sample.py; by default `data` for a model that is conditioned on more than
            the class, else `none`.

    Raises:
        UserError: For conditions that the model does not take, or that the data do not have.
    """
    parts = parts_of(model) if isinstance(model, DiffusionModel) else ()
    if asked is None:
        asked = [DATA] if isinstance(model, DiffusionModel) and model.denoiser.parts else [NONE]
    if list(asked) == [NONE]:
        return None
    if not parts:
        read_conditions(model, asked)  # says so
    if list(asked) != [DATA]:
        values = read_conditions(model, asked)
        check_count(values, len(images), "images")
        digest = _digest({**values, "files": image_digests({CONDITION: list(asked)})})
        return Given(values, list(asked), digest)
    split = str(identity["split"])
    if any(part.name == LABEL for part in parts) and getattr(data, f"{split}_labels") is None:
        raise UserError(f"{OPTION}: found 'data'; '{data.name}' has no labels")
    rows = rows_of(identity)
    tensors = Conditions(parts, data).of(split, rows, images, _SEED, rows)
    values = {part.name: c for part, c in zip(parts, tensors, strict=True)}
    return Given(values, DATA, _digest(values))


def given_to_samples(
    model: TrainedModel, data: SplitData, asked: Sequence[str] | None, n: int
) -> tuple[Given | None, Tensor | None]:
    """The conditions that n samples are drawn under, and whose they are.

    Args:
        model: The model.
        data: The data that it was trained on.
        asked: As `given_to`; `data` takes the conditions of test images, which the model has not seen, in the fixed
            order, from the beginning again where there are too few.
        n: The number of samples.

    Returns:
        The conditions, None for none, and the rows of the test images, None where they are of none.

    Raises:
        UserError: As `given_to`.
    """
    own = [DATA] if isinstance(model, DiffusionModel) and model.denoiser.parts else [NONE]
    asked = own if asked is None else list(asked)
    if asked == [NONE]:
        return None, None
    if asked != [DATA] or not parts_of(model):
        values = read_conditions(model, asked)
        check_count(values, n)
        return Given(values, asked, _digest({**values, "files": image_digests({CONDITION: asked})})), None
    if not len(data.test):
        raise UserError(f"{OPTION}: found 'data'; '{data.name}' has no test images to take conditions from")
    order = fixed_order(torch.arange(len(data.test)))
    rows = order[torch.arange(n) % len(order)]
    parts = parts_of(model)
    tensors = Conditions(parts, data).of("test", rows, data.test[rows], _SEED, torch.arange(n))
    values = {part.name: c for part, c in zip(parts, tensors, strict=True)}
    return Given(values, DATA, _digest(values)), rows


def _digest(values: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name, value in values.items():
        found.update(f"{name} ".encode())
        plain = not isinstance(value, Tensor)
        found.update(json.dumps(value).encode() if plain else value.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def information(conditional: Estimate, none: Estimate) -> Interval:
    """I(x; c) in bits per datum, with its 95 % interval, from figures of the same data.

    Raises:
        UserError: Where the data are not the same.
    """
    a, b = conditional, none
    if a.indices is None or b.indices is None or not torch.equal(a.indices, b.indices):
        raise UserError("condition: figures of unlike data cannot be paired")
    return mean_interval((a.log_prob - b.log_prob) / math.log(2.0))


def information_line(name: str, conditional: Estimate, none: Estimate) -> str:
    """What a condition tells, in a line."""
    found = information(conditional, none)
    parts = str(conditional.protocol[CONDITION])
    bound = ", the difference of two bounds" if conditional.kind == "lower bound" else ""
    unit, scale = ("bits/dim", 1.0) if none.levels is not None else ("nats/dim", math.log(2.0))
    there, without = (scale * of.mean().mean for of in (conditional, none))
    interval = f"{found.low:.4f} to {found.high:.4f}" if math.isfinite(found.low) else "unknown"  # of one datum
    return (
        f"I(x; {parts}) by {name}: {found.mean:.4f} bits ({interval}), paired on "
        f"{len(none)} of the same data{bound}; {there:.4f} {unit} with the condition, {without:.4f} without"
    )
