"""Exact nearest neighbours by chunked brute force, in float64 and O(N) memory.

Candidates are found by matrix products of the centred points, a point's own row being excluded by its index; their
distances are then recomputed from differences, which avoids cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Entries of a (chunk, N) table of squared distances, or of a (chunk, candidates, d) one, in memory at once.
_BLOCK = 2**22
# Rounding may swap neighbours at nearly equal distances: the search returns a few more, the exact distances decide.
_SPARE = 4


@torch.no_grad()
def nearest(
    queries: Float[Tensor, " m d"], points: Float[Tensor, " n d"], k: int = 1
) -> tuple[Float[Tensor, " m k"], Int[Tensor, " m k"]]:
    """The k nearest of `points` to each query, nearest first: distances (float64) and row numbers; 1 <= k <= N."""
    return _search(queries, points, k, own=False)


@torch.no_grad()
def nearest_others(points: Float[Tensor, " n d"], k: int) -> tuple[Float[Tensor, " n k"], Int[Tensor, " n k"]]:
    """The k nearest other rows of each row, nearest first: distances (float64) and row numbers; 1 <= k < N."""
    return _search(points, points, k, own=True)


@torch.no_grad()
def square_tables(
    queries: Float[Tensor, " m d"], points: Float[Tensor, " n d"]
) -> Iterator[tuple[Int[Tensor, " chunk"], Float[Tensor, " chunk n"], Float[Tensor, " chunk n"]]]:
    """Squared distances of all pairs, a chunk of queries at a time, by matrix products.

    Yields:
        The row numbers of the chunk, its squared distances, and |q|^2 + |p|^2 about the centre of the points: the
        rounding error of the squares is about 1e-15 of these.
    """
    queries, points = queries.double(), points.double()
    center = points.mean(0)
    queries, points = queries - center, points - center
    norms = points.square().sum(1)
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, _BLOCK // len(points))):
        scale = queries[rows].square().sum(1, keepdim=True) + norms
        yield rows, scale - 2.0 * (queries[rows] @ points.T), scale


def _search(queries: Tensor, points: Tensor, k: int, own: bool) -> tuple[Tensor, Tensor]:
    n, d = points.shape
    # float64: unaffected by autocast and TF32, and clusters of 1e-6 of the spread keep their digits.
    queries, points = queries.double(), points.double()
    center = points.mean(0)
    queries, points = queries - center, points - center
    norms = points.square().sum(1)
    candidates = min(k + _SPARE, n - own)
    rows_at_once = max(1, min(_BLOCK // n, _BLOCK // (candidates * d)))
    distances, neighbours = [], []
    for rows in torch.arange(len(queries), device=queries.device).split(rows_at_once):
        squares = norms - 2.0 * (queries[rows] @ points.T)  # |q|^2, the same in the whole row, changes no order
        if own:
            squares[torch.arange(len(rows), device=queries.device), rows] = math.inf
        found = squares.topk(candidates, dim=1, largest=False).indices
        exact = (queries[rows, None] - points[found]).square().sum(2)
        best = exact.topk(k, dim=1, largest=False)
        distances.append(best.values.sqrt())
        neighbours.append(found.gather(1, best.indices))
    return torch.cat(distances), torch.cat(neighbours)
