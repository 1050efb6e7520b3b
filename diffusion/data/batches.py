"""The order of training batches as a function of (seed, step), not a state.

Epoch e of a run with a given seed visits the n images in one fixed random order, each exactly once; step k takes
positions k B .. (k + 1) B - 1 of the epochs laid end to end, so that a batch may straddle two of them. A run resumed at
step k, with whatever number of processes, goes on exactly as if it had never stopped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ..errors import UserError
from ..numerics.random import STREAM_AUGMENT, STREAM_ORDER, uniform


@lru_cache(maxsize=2)  # a batch lies in one epoch, or on the border of two
def _epoch_order(seed: int, epoch: int, n: int, device: torch.device | None) -> Int64[Tensor, " n"]:
    keys = uniform(seed, torch.arange(n, device=device), epoch, stream=STREAM_ORDER, dtype=torch.float64)
    # Stable, so that two equal keys (32 bits each) are in the same order on every machine.
    return torch.argsort(keys, stable=True)


def global_positions(batch_size: int, rank: int = 0, world_size: int = 1) -> Int64[Tensor, " b"]:
    """Return this process's positions in the global batch, which key all randomness of its samples.

    Args:
        batch_size: Size of the global batch.
        rank: Number of this process.
        world_size: Number of processes; each takes one contiguous slice of the global batch.

    Raises:
        UserError: Where the processes cannot share the batch equally.
    """
    share = share_of(batch_size, world_size)
    return torch.arange(rank * share, (rank + 1) * share)


def share_of(batch_size: int, world_size: int) -> int:
    """Each process's part of a global batch.

    Raises:
        UserError: Where the processes cannot share the batch equally.
    """
    if batch_size < 1 or batch_size % world_size:
        raise UserError(
            f"batch size: {batch_size} cannot be shared equally by {world_size} process(es); accepted: a multiple."
        )
    return batch_size // world_size


def batch_indices(
    seed: int,
    step: int,
    batch_size: int,
    n: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> Int64[Tensor, " b"]:
    """Return which of `n` images make the batch of `step` (of this process): shape (batch_size / world_size,).

    Args:
        seed: The seed of the run.
        step: The training step; the first is 0.
        batch_size: Size of the global batch; it may be larger than `n`.
        n: Number of training images.
        rank: Number of this process.
        world_size: Number of processes.
        device: Where the rows are wanted.

    Raises:
        UserError: Where there is no image, or the processes cannot share the batch equally.
    """
    if n < 1:
        raise UserError("data: there is no training image to make a batch of.")
    first = step * batch_size + rank * share_of(batch_size, world_size)
    end = first + share_of(batch_size, world_size)
    pieces = []
    for epoch in range(first // n, (end - 1) // n + 1):
        start = epoch * n
        pieces.append(_epoch_order(seed, epoch, n, device)[max(first - start, 0) : end - start])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def augment(
    images: Shaped[Tensor, " b *shape"], seed: int, step: int, positions: Int64[Tensor, " b"], flip: bool
) -> Shaped[Tensor, " b *shape"]:
    """Mirror each image left to right with chance 1/2, keyed by (seed, step, its position in the global batch).

    Args:
        images: Images, shape (B, C, H, W), or other data that are not mirrored.
        seed: The seed of the run.
        step: The training step.
        positions: Positions in the global batch, shape (B,); see `global_positions`.
        flip: Whether to mirror at all; if not, the images are returned as they are and nothing is drawn.
    """
    if not flip:
        return images
    mirrored = uniform(seed, positions, step, stream=STREAM_AUGMENT, device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
