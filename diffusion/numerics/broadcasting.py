"""Broadcasting of per-sample quantities against a batch of data."""

from __future__ import annotations

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
