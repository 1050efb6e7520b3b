"""Conditions other than class labels: whatever a network takes besides x and the noise level, one entry per sample.

Class labels are one tensor, (B,). A condition that is a vector, an image or several of them passes through samplers,
guidance and likelihoods as `Condition`, which is sliced and moved like a tensor of labels; the network receives the
tensor or tuple of tensors as passed by the user.

A denoiser that says the parts of its condition (`networks.parts`) takes them by name, and knows what stands for none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..networks.parts import CLASSES, Part
from ..networks.parts import LABEL as LABEL
from ..numerics.arrays import REFUSED, as_tensor, described

_FURTHEST = 1e6  # deviations from a mean: a network knows nothing there
_ROUNDING = 1e-3  # beyond [-1, 1], as of float16
MASK = "mask"  # the part that is what is known of the data, and where


class Condition:
    """One or more tensors with the samples as the first axis, each (B, ...), indexed by sample only.

    Args:
        parts: The tensors.
        null: The null condition of the same samples, for guidance.
    """

    def __init__(self, parts: Sequence[Tensor], null: Condition | None = None):
        self.parts = tuple(parts)
        self.null = null

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to each tensor."""
        return Condition([change(part) for part in self.parts], self.null and self.null.each(change))

    @property
    def given(self) -> Tensor | tuple[Tensor, ...]:
        """In the form that the network takes."""
        return self.parts[0] if len(self.parts) == 1 else self.parts

    @property
    def device(self) -> torch.device:
        """Its device."""
        return self.parts[0].device

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> Condition:
        return self.each(lambda part: part[rows])

    def to(self, device: torch.device | str | None) -> Condition:
        """The same on another device; dtypes are unchanged."""
        return self.each(lambda part: part.to(device))

    def repeat_interleave(self, times: int, dim: int = 0) -> Condition:
        """As torch's, along the samples."""
        return self.each(lambda part: part.repeat_interleave(times, dim))

    def led_from(self, null: Condition) -> Condition:
        """The same with a null condition, one entry per sample or one for all.

        Raises:
            UserError: If its type or shape does not match.
        """
        shapes = [[tuple(part.shape[1:]) for part in one.parts] for one in (self, null)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"cond_null: found entries of shape {', '.join(map(str, shapes[1]))}; "
                f"needs those of cond, {', '.join(map(str, shapes[0]))}"
            )
        return Condition(self.parts, condition_for("cond_null", null, len(self), finite=False))

    def then(self, other: Condition) -> Condition:
        """The concatenation along the samples."""
        return Condition([torch.cat((a, b.to(a))) for a, b in zip(self.parts, other.parts, strict=True)])


def condition_for(name: str, cond: object, n: int, finite: bool = True) -> Condition:
    """A user's condition, for n samples.

    Args:
        name: The argument, for messages.
        cond: A tensor or array with the samples as the first axis, or a tuple or list of them; one entry is used for
            all samples.
        n: The number of samples.
        finite: Whether its numbers must be finite.

    Raises:
        UserError: For anything without such entries.
    """
    null = None
    if isinstance(cond, Condition):
        parts, null = cond.parts, cond.null
    else:
        several = isinstance(cond, tuple) or (isinstance(cond, list) and any(isinstance(v, Tensor) for v in cond))
        try:
            parts = tuple(as_tensor(part) for part in (cond if several else (cond,)))  # type: ignore[union-attr]
        except REFUSED:
            raise UserError(f"{name}: found {described(cond)}; needs a tensor, or a tuple of tensors") from None
    shapes = [tuple(part.shape) for part in parts]
    if not parts or any(not shape or shape[0] not in (1, n) for shape in shapes):
        raise UserError(
            f"{name}: found shapes {shapes}; needs one entry a sample, ({n}, ...), or one for all, (1, ...)"
        )
    if finite and any(part.is_floating_point() and not bool(torch.isfinite(part).all()) for part in parts):
        raise UserError(f"{name}: has values that are not finite")
    return Condition(parts, null).each(lambda part: part.detach().expand(n, *part.shape[1:]))


def of_parts(parts: Sequence[Part], given: Any, n: int, name: str = "cond") -> Condition:
    """A user's condition for n samples of a model with these parts, with none of each as its null.

    Args:
        parts: What the model is conditioned on.
        given: {name: value}, where parts that are left out are none; a tuple or list with a value, or None, for each
            part; or the value of the only one. A value is one for all samples, or one a sample. Classes are numbers or
            names.
        n: The number of samples.
        name: The argument, for messages.

    Raises:
        UserError: For a name of no part, and values of another kind or shape, or that are not finite.
    """
    if isinstance(given, Condition):
        given = given.parts
    by_name = {part.name: part for part in parts}
    if isinstance(given, Mapping):
        for key in given:
            if key not in by_name:
                hint = did_you_mean(str(key), by_name)
                raise UserError(f"{name}: found '{key}'; the model's condition has {', '.join(map(str, parts))}.{hint}")
        values = [given.get(part.name) for part in parts]
    else:
        several = isinstance(given, tuple) or (isinstance(given, list) and len(parts) > 1)
        values = list(given) if several else [given]
        if len(values) != len(parts):
            raise UserError(
                f"{name}: found {len(values)} value(s); the model's condition has {', '.join(map(str, parts))}; give "
                "them by name, {name: value}"
            )
    found = [part.none(n) if value is None else _of_part(part, value, n, name)
             for part, value in zip(parts, values, strict=True)]  # fmt: skip
    return with_null(parts, found)


def with_null(parts: Sequence[Part], found: Sequence[Tensor]) -> Condition:
    """The condition of these tensors, with none of each part as its null."""
    return Condition(found, Condition([part.none(len(c), c) for part, c in zip(parts, found, strict=True)]))


def _of_part(part: Part, value: Any, n: int, name: str) -> Tensor:
    """The tensor of a part for n samples; real numbers keep float64, what is none stays so."""
    prefix = f"{name}: {part}"
    if part.kind == CLASSES:
        from ..data.class_names import number_of  # all of that room, which samplers do without

        names = list(part.names) or [str(number) for number in range(part.size)]
        if getattr(getattr(value, "dtype", None), "kind", "") == "U":
            value = value.tolist()  # words in an array
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple | list) else []
        if any(isinstance(text, str) for text in texts):
            value = [number_of(text, names, prefix) if isinstance(text, str) else text for text in texts]
    try:
        c = as_tensor(value).detach()
    except REFUSED:
        raise UserError(f"{prefix}: found {described(value)}; needs numbers") from None
    if c.is_complex() or c.dtype == torch.bool or (part.kind == CLASSES and c.is_floating_point()):
        raise UserError(f"{prefix}: found {c.dtype}; needs {'whole' if part.kind == CLASSES else 'real'} numbers")
    if c.ndim == part.axes - 1 and not (part.kind == CLASSES and c.ndim):
        c = c[None]
    wanted = ", ".join(map(str, (part.size, *part.sides))) if part.kind != CLASSES else ""
    if (
        c.ndim != part.axes
        or len(c) not in (1, n)
        or (part.kind != CLASSES and c.shape[1] != part.size)
        or not c.numel()
    ):
        several = "" if n == 1 else f"({n}, {wanted}), or one for all, "
        raise UserError(f"{prefix}: found shape {tuple(c.shape)}; needs {several}(1, {wanted})")
    c = c.expand(n, *c.shape[1:])
    if part.kind == CLASSES:
        c = c.long()  # unsigned types lack comparisons
        wrong = c[(c < 0) | (c > part.size)]
        if len(wrong):
            raise UserError(f"{prefix}: found {int(wrong[0])}; the classes are 0 to {part.size - 1}")
        return c
    c = _of_image(part, c, prefix) if part.is_image else c
    c = c if c.dtype == torch.float64 else c.float()
    bad = ~torch.isfinite(c.flatten(1)).all(1) & ~torch.isnan(c.flatten(1)).all(1)
    if bool(bad.any()):
        raise UserError(f"{prefix}: sample {int(bad.nonzero()[0])} has values that are not finite")
    mean, std = (
        torch.tensor(of, dtype=torch.float64).reshape(-1, *(1,) * (c.ndim - 2)) for of in (part.mean, part.std)
    )
    if bool((far := ((c.cpu().double() - mean).abs() / std).flatten(1).amax(1) > _FURTHEST).any()):
        row = int(far.nonzero()[0])
        raise UserError(f"{prefix}: sample {row} is more than {_FURTHEST:.0e} deviations from what it is in training")
    return c


def _of_image(part: Part, c: Tensor, prefix: str) -> Tensor:
    """A field of images in [-1, 1], of bytes or as it is.

    Raises:
        UserError: For other whole numbers, and numbers beyond.
    """
    accepted = "floats in [-1, 1]" if part.name == MASK else "uint8, 0 to 255, or floats in [-1, 1] (clamp them)"
    if c.dtype == torch.uint8 and part.name != MASK:
        return c.float() * (2.0 / 255.0) - 1.0
    if not c.is_floating_point() or bool((c.abs() > 1.0 + _ROUNDING).any()):
        found = f"numbers of {float(c[~c.isnan()].min()):g} to {float(c[~c.isnan()].max()):g}"
        raise UserError(f"{prefix}: found {c.dtype}, {found}; needs {accepted}")
    return c


def labels_only(cond: Any) -> Tensor | None:
    """A condition that must be class labels.

    Raises:
        UserError: For any other condition.
    """
    if isinstance(cond, Condition):
        raise UserError("cond: this model is steered by class labels; give a label in its place")
    return cond
