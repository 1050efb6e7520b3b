"""Rotary positions in one to three dimensions (Su et al. 2021, arXiv 2104.09864).

Pairs of features of queries and keys are rotated by angles proportional to the position of their token:

    (q_1, q_2)  ->  (q_1 cos w p - q_2 sin w p,  q_1 sin w p + q_2 cos w p)

so a product of a query at p and a key at p' depends on p - p' alone: R(w p)^T R(w p') = R(w (p' - p)). In several
dimensions each side has its own pairs (axial; Heo et al. 2024, arXiv 2403.13298, sec. 3.2), with frequencies
w_i = 100^(-i / n), which suit grids of tens of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

BASE = 100.0


def angles(coordinates: Sequence[Tensor], width: int) -> Float[Tensor, " n pairs"]:
    """The angle of each pair of features of a head of this width, at each place of a grid, row by row: (n, pairs).

    Each side has width // (2 sides) pairs; the features that are left over are not rotated.

    Args:
        coordinates: The positions along each side.
        width: Of a head.

    Raises:
        UserError: For a head too narrow for a pair a side.
    """
    pairs = width // (2 * len(coordinates))
    if pairs < 1:
        raise UserError(
            f"heads: heads of {width} features are too narrow for rotary positions along {len(coordinates)} sides; "
            f"accepted: {2 * len(coordinates)} features or more"
        )
    exponents = torch.arange(pairs, dtype=coordinates[0].dtype, device=coordinates[0].device) / pairs
    mesh = torch.meshgrid(*coordinates, indexing="ij")
    return torch.cat([places.reshape(-1, 1) * BASE**-exponents for places in mesh], dim=1)


def rotated(x: Float[Tensor, " b h n d"], angle: Float[Tensor, " n pairs"]) -> Float[Tensor, " b h n d"]:
    """Queries or keys with their pairs rotated: feature i of the first `pairs` goes with feature i of the next."""
    pairs = angle.shape[1]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)
