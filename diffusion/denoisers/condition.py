"""Conditions other than class labels: whatever a network takes besides x and the noise level, one entry per sample.

Class labels are one tensor, (B,). A condition that is a vector, an image or several of them passes through samplers,
guidance and likelihoods as `Condition`, which is sliced and moved like a tensor of labels; the network receives the
tensor or tuple of tensors as passed by the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


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
        return Condition(self.parts, condition_for("cond_null", null, len(self)))

    def then(self, other: Condition) -> Condition:
        """The concatenation along the samples."""
        return Condition([torch.cat((a, b.to(a))) for a, b in zip(self.parts, other.parts, strict=True)])


def condition_for(name: str, cond: object, n: int) -> Condition:
    """A user's condition, for n samples.

    Args:
        name: The argument, for messages.
        cond: A tensor or array with the samples as the first axis, or a tuple or list of them; one entry is used for
            all samples.
        n: The number of samples.

    Raises:
        UserError: For anything without such entries.
    """
    null = None
    if isinstance(cond, Condition):
        parts, null = cond.parts, cond.null
    else:
        several = isinstance(cond, tuple) or (isinstance(cond, list) and any(isinstance(v, Tensor) for v in cond))
        try:
            parts = tuple(torch.as_tensor(part) for part in (cond if several else (cond,)))  # type: ignore[union-attr]
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{name}: found {str(cond)[:60]}; needs a tensor, or a tuple of tensors") from None
    shapes = [tuple(part.shape) for part in parts]
    if not parts or any(not shape or shape[0] not in (1, n) for shape in shapes):
        raise UserError(
            f"{name}: found shapes {shapes}; needs one entry a sample, ({n}, ...), or one for all, (1, ...)"
        )
    if any(part.is_floating_point() and not bool(torch.isfinite(part).all()) for part in parts):
        raise UserError(f"{name}: has values that are not finite")
    return Condition(parts, null).each(lambda part: part.detach().expand(n, *part.shape[1:]))


def labels_only(cond: Any) -> Tensor | None:
    """A condition that must be class labels.

    Raises:
        UserError: For any other condition.
    """
    if isinstance(cond, Condition):
        raise UserError("cond: this model is steered by class labels; give a label in its place")
    return cond
