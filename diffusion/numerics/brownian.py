"""Noise keyed to a path: the same seed at 20 and at 200 steps follows the same Brownian motion.

With stochasticity eta, a step of the reverse SDE from t to s adds the fresh noise

    N(a, b) = integral from a to b of exp(-(b - u) / 2) dW_u,        Var N(a, b) = 1 - exp(-(b - a)),

in the *clock* u = integral of eta^2 d lambda (lambda: the log-SNR). In this clock the noise of a path is a stationary
Ornstein-Uhlenbeck process, exp(-u/2) B(exp(u)) for a Brownian motion B: its scale is constant along the path, so the
clock may have any length. Intervals compose, N(a, c) = exp(-(c - b)/2) N(a, b) + N(b, c), and given N(a, c) the noise
of its first half is Gaussian: with q = exp(-(c - a)/4),

    N(a, m) = q / (1 + q^2) N(a, c) + sqrt((1 - q^2) / (1 + q^2)) z.

Bisecting a fixed interval repeatedly, with z keyed by (seed, sample index, node of the tree), gives a virtual tree (as
in Li et al. 2020, arXiv 2001.01328, sec. 4, for Brownian motion): N between any two points of a dyadic lattice is a
weighted sum of keyed normals. The weights are computed once per grid, in float64; their squares sum to the variance of
the step, so the noise of a step is exactly standard normal and independent of other steps, on every grid. Only the
positions of the grid points are rounded, to a lattice much finer than the error of their steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UserError
from .random import Noise, path_normal

# The tree covers the clock from -2^15 to 2^15; its deepest leaves are 2^-30 long. A node is its index in heap order.
_REACH, _DEPTH = 2.0**15, 46
_LEAF = 2.0 * _REACH / 2.0**_DEPTH
_NEGLIGIBLE = 1e-9  # weight, of 1, below which a node is omitted
_AT_ONCE = 2**18  # normals drawn at once: more exceed the CPU cache
_KEPT = 2**24  # normals of the last step cached for the next, at most: 128 MiB


def lattice(clock: Float[Tensor, " n"], step: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Clock times, float64, rounded to the lattice for steps of length `step`: integer numbers of leaves.

    The rounding moves noise from one step to its neighbour by about a quarter of the step's square (an eighth of the
    step in units of the noise), less than the error of a solver of strong order 1.

    Raises:
        UserError: For times beyond the tree.
    """
    if bool((clock.abs() >= _REACH).any()):
        raise UserError(f"eta: too large for this path; eta^2 times the log-SNR must stay below {_REACH:.0f}")
    fine = torch.minimum(step, step**2) / 16.0
    exponent = torch.floor(torch.log2(fine.clamp(_LEAF, 1.0) / _LEAF))
    spacing = torch.exp2(exponent).to(torch.int64)
    leaves = torch.round((clock + _REACH) / _LEAF).to(torch.int64)
    return (leaves + spacing // 2) // spacing * spacing


@dataclass(frozen=True)
class Weights:
    """Normalised noises as weighted sums of keyed normals.

    Args:
        nodes: The nodes of the tree, int64 of shape (n, J).
        weights: Their weights, float64 of shape (n, J), padded with 0; the squares of a row sum to 1 (to 0 for an
            empty interval).
    """

    nodes: Tensor
    weights: Tensor

    @cached_property
    def used(self) -> list[dict[int, tuple[Tensor, Tensor]]]:
        """Of each row the nodes that it needs, with their numbers and weights as () on the device of the weights."""
        count = (self.weights.abs() > _NEGLIGIBLE).sum(1).tolist()  # they come first in the row
        rows = zip(self.nodes.tolist(), self.nodes.to(self.weights.device), self.weights, count, strict=True)
        return [
            dict(zip(nodes[:n], zip(numbers[:n].unbind(), weights[:n].unbind(), strict=True), strict=True))
            for nodes, numbers, weights, n in rows
        ]

    @classmethod
    def between(cls, start: Int[Tensor, " n"], end: Int[Tensor, " n"]) -> Weights:
        """Those of N(start, end) divided by its standard deviation, for lattice points start <= end."""
        nodes, from_root = _from_root(torch.cat((start, end)))
        (nodes_a, nodes_b), (from_root_a, from_root_b) = nodes.chunk(2), from_root.chunk(2)
        decay = torch.exp(-0.5 * _LEAF * (end - start).double())[:, None]
        carried, shared = -decay * from_root_a, nodes_a == nodes_b
        nodes = torch.cat((nodes_b, nodes_a), 1)
        weights = torch.cat((from_root_b + torch.where(shared, carried, 0.0), carried.masked_fill(shared, 0.0)), 1)
        norm = weights.square().sum(1, keepdim=True).sqrt()
        weights = torch.where((end > start)[:, None], weights / norm.clamp(min=1e-300), 0.0)
        used = max(1, int((weights.abs() > _NEGLIGIBLE).sum(1).max()))
        order = weights.abs().argsort(dim=1, descending=True, stable=True)[:, :used]
        return cls(nodes.gather(1, order), weights.gather(1, order))


def _from_root(points: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes from the root to each point, (n, levels), and the weights of N(start of the tree, point)."""
    ends_at = 0  # the level from which on every point is the left end of its interval
    while bool((points & (2 ** (_DEPTH - ends_at) - 1)).any()):
        ends_at += 1
    left = torch.zeros(len(points), ends_at + 1, dtype=torch.float64)  # N(start of the tree, left end of the interval)
    whole = torch.zeros_like(left)  # N(the interval)
    whole[:, 0] = 1.0
    nodes = torch.zeros(len(points), ends_at + 1, dtype=torch.int64)
    for level in range(ends_at):
        nodes[:, level + 1] = (points >> (_DEPTH - level)) + 2**level
        q = math.exp(-0.5 * _REACH * 2.0**-level)
        first = q / (1.0 + q * q) * whole
        first[:, level + 1] = math.sqrt(-math.expm1(-_REACH * 2.0**-level) / (1.0 + q * q))
        in_second = ((points >> (_DEPTH - level - 1)) & 1).bool()[:, None]
        left = torch.where(in_second, q * left + first, left)
        whole = torch.where(in_second, whole - q * first, first)
    return nodes, left


def draw(noise: Noise, indices: Int[Tensor, " b"], weights: Weights) -> Float[Tensor, " b *dims"]:
    """Noise of shape (B, *shape), row i for the sample indices[i] with the i-th row of weights (or the only one)."""
    rows = len(indices)
    nodes = weights.nodes.expand(rows, -1)
    factors = weights.weights.expand(rows, -1).to(noise.device)
    total = torch.zeros(rows, *noise.shape, dtype=torch.float64, device=noise.device)
    # One after the other, the same sum for a sample whatever its batch.
    for j, z in enumerate(_normals(noise, indices, nodes.T)):
        total.addcmul_(z, factors[:, j].reshape(-1, *(1,) * len(noise.shape)))
    return total.to(noise.dtype)


def _normals(noise: Noise, indices: Int[Tensor, " b"], nodes: Int[Tensor, "j b"]) -> Iterator[Tensor]:
    """The normals of shape (B, *shape) of each row of nodes, drawn several rows at once."""
    rows = len(indices)
    at_once = max(1, _AT_ONCE // (rows * max(1, math.prod(noise.shape))))
    for some in nodes.to(noise.device).split(at_once):
        z = path_normal(noise.seed, indices.repeat(len(some)), some.flatten(), noise.shape, noise.device)
        yield from z.reshape(len(some), rows, *noise.shape)


@lru_cache(maxsize=16)
def _weights_along(clock: tuple[float, ...], device: torch.device | str | None) -> Weights:
    """The weights of the steps of a grid on a device, cached across batches."""
    with torch.inference_mode(False):  # the weights may also be used where gradients are taken
        at = torch.tensor(clock, dtype=torch.float64)
        lengths = at.diff()
        lengths = torch.where(lengths > 0, lengths, torch.inf)  # where no noise is drawn
        points = lattice(at, torch.minimum(*(pad(lengths, sides, value=torch.inf) for sides in ((0, 1), (1, 0)))))
        weights = Weights.between(points[:-1], points[1:])
        return Weights(weights.nodes, weights.weights.to(device))


@dataclass(frozen=True)
class GridNoise:
    """The noise of the steps of a grid, as a function of the step: normalised N(clock[step], clock[step + 1]).

    Args:
        noise: The seed, the samples, their shape and type.
        steps: The weights of each step, one row per step.
        at_hand: Cached normals by node: those of the last step, two thirds of which the next one reuses, and, for small
            samples, those of several steps ahead, as drawing them all costs no more than drawing one step. They are a
            function of seed, sample and node, so the cache does not affect the result.
    """

    noise: Noise
    steps: Weights
    at_hand: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def along(cls, noise: Noise, clock: Float[Tensor, " times"]) -> GridNoise:
        """The noise along a grid with these clock times, float64 and non-decreasing."""
        return cls(noise, _weights_along(tuple(clock.tolist()), noise.device))

    def __call__(self, step: int) -> Float[Tensor, " b *dims"]:
        """Standard normals of shape (B, *shape)."""
        noise, indices, weights = self.noise, self.noise.indices, self.steps.used[step]
        size = max(1, len(indices) * math.prod(noise.shape))
        missing: dict[int, Tensor] = {}
        fresh: Iterator[tuple[int, Tensor]] = iter(())
        if any(node not in self.at_hand for node in weights):
            to_come = chain(*(row.items() for row in self.steps.used[step : step + noise.steps_at_once]))
            missing = {node: number for node, (number, _) in to_come if node not in self.at_hand}
            rows = torch.stack(list(missing.values()))[:, None].expand(-1, len(indices))
            fresh = zip(missing, _normals(noise, indices, rows), strict=True)
        total = torch.zeros(len(indices), *noise.shape, dtype=torch.float64, device=noise.device)
        kept: dict[int, Tensor] = {}
        # One after the other, the same sum for a sample whatever its batch.
        for node, (_, weight) in weights.items():
            z = self.at_hand[node] if node in self.at_hand else next(fresh)[1]
            total.addcmul_(z, weight)
            if (len(kept) + 1) * size <= _KEPT:
                kept[node] = z
        if missing:
            kept.update(fresh)
            self.at_hand.clear()
            self.at_hand.update(kept)
        return total.to(noise.dtype)
