"""Broadcasting of per-sample quantities against a batch of data."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_dims_like(t: Tensor, x: Tensor) -> Tensor:
    """Reshape `t` of shape () or (B,) so that it broadcasts against `x` of shape (B, *dims).

    Args:
        t: One value for the whole batch, shape (), or one per sample, shape (B,).
        x: A batch of data, shape (B, *dims).

    Returns:
        `t` itself if it is a scalar, else `t` of shape (B, 1, ..., 1), moved to the device of `x`.
        (A scalar is not moved: torch combines a CPU scalar with a tensor on any device.)
    """
    if t.ndim == 0:
        return t
    return t.to(x.device).reshape(t.shape[0], *(1,) * (x.ndim - 1))


def per_row(t: Tensor, x: Tensor) -> Tensor:
    """`t` of shape () or (B,) as one number for each row of `x` (B, *dims): (B,), contiguous, on the device of `x`.

    A scalar of the CPU is added there to zeros, an argument of the operation: as a copy, the CPU would wait for it.
    """
    if t.ndim == 0 and t.device != x.device:
        t = torch.zeros(len(x), dtype=t.dtype, device=x.device) + t
    return t.to(x.device).expand(len(x)).contiguous()
