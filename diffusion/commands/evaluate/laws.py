"""A line on figures of two laws of one network, where `evaluate` measured both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from ...errors import UserError
from ..compare.comparison import paired_difference
from ..records import Evaluation
from ..report import known


def laws_apart(measured: Sequence[Evaluation]) -> list[str]:
    """A line for each two figures of one model that are of two laws: both, and their difference on the same images."""
    return [_line(one, other) for one, other in combinations(measured, 2) if one.estimate.law != other.estimate.law]


def _line(one: Evaluation, other: Evaluation) -> str:
    laws = " and ".join(
        f"{evaluation.estimate.mean().mean:.4f} of the {evaluation.estimate.law} ({evaluation.protocol.method})"
        for evaluation in (one, other)
    )
    try:
        apart = paired_difference(one.estimate, other.estimate)
        difference = f"apart by {apart.mean:+.4f} ({known('{:+.4f} to {:+.4f}', apart.low, apart.high)})"
    except UserError:  # not of the same images, as with a target error
        difference = "of unlike images"
    return (
        f"two laws of one network: {laws} bits/dim, {difference}; they are two models, alike only where the network is "
        "the exact posterior mean, and neither figure checks the other"
    )
