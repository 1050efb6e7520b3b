"""A network's own condition: whatever it takes beside x and the noise level, with one entry a sample.

Class labels are one tensor, (B,). A condition that is a vector, an image or several of them is handed through samplers,
guidance and likelihoods as `Condition`, which is sliced and moved like the tensor of labels; the network gets what was
given, the tensor or the tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


class Condition:
    """One or more tensors with the samples first, each (B, ...), that are taken apart by samples alone.

    Args:
        parts: The tensors.
        null: The condition that stands for none, of the same samples, where guidance leads away from it.
    """

    def __init__(self, parts: Sequence[Tensor], null: Condition | None = None):
        self.parts = tuple(parts)
        self.null = null

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """What is made of each tensor."""
        return Condition([change(part) for part in self.parts], self.null and self.null.each(change))

    @property
    def given(self) -> Tensor | tuple[Tensor, ...]:
        """As the network takes it."""
        return self.parts[0] if len(self.parts) == 1 else self.parts

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.parts[0].device

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> Condition:
        return self.each(lambda part: part[rows])

    def to(self, device: torch.device | str | None) -> Condition:
        """The same on another device; kinds of numbers stay."""
        return self.each(lambda part: part.to(device))

    def repeat_interleave(self, times: int, dim: int = 0) -> Condition:
        """As torch's, of the samples."""
        return self.each(lambda part: part.repeat_interleave(times, dim))

    def led_from(self, null: Condition) -> Condition:
        """The same with the condition that stands for none, one entry a sample or one for all.

        Raises:
            UserError: For one of another kind.
        """
        shapes = [[tuple(part.shape[1:]) for part in one.parts] for one in (self, null)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"cond_null: found entries of shape {', '.join(map(str, shapes[1]))}; "
                f"needs those of cond, {', '.join(map(str, shapes[0]))}"
            )
        return Condition(self.parts, condition_for("cond_null", null, len(self)))

    def then(self, other: Condition) -> Condition:
        """These samples, then the others."""
        return Condition([torch.cat((a, b.to(a))) for a, b in zip(self.parts, other.parts, strict=True)])


def condition_for(name: str, cond: object, n: int) -> Condition:
    """A condition as it was given, for n samples.

    Args:
        name: The argument, for messages.
        cond: A tensor or array with the samples first, or a tuple or list of such; one entry serves all samples.
        n: The number of samples.

    Raises:
        UserError: For what has no such entries.
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
    """A condition where class labels are meant.

    Raises:
        UserError: For a condition that is none.
    """
    if isinstance(cond, Condition):
        raise UserError("cond: this model is steered by class labels; give a label in its place")
    return cond
