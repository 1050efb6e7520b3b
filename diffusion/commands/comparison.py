"""What may be compared with what: rows in groups of one kind, differences paired on the same images.

Two models' figures on the same images share the images' own spread (some digits are hard for every model), so the mean
of the differences has a far narrower interval than the difference of the means:

    mean(a - b) +- t_{n-1}(0.975) s(a - b) / sqrt(n)

Rows of one group answer the same question in the same sense: one kind of figure, one dequantisation. Differences
between groups are told apart from those within: two bounds may differ because one of them is looser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..likelihood import Estimate, Interval
from ..likelihood.estimate import student_interval
from .records import Evaluation

KINDS = {
    "exact": "the probability of the images itself, up to the solver's tolerance",
    "unbiased": "right on average over the estimator's own randomness",
    "lower bound": "at most log P on average, so that bits/dim are at least the true ones; the gap is not known",
    "surrogate": "neither a bound nor unbiased: an indication only",
}
DEQUANTIZATIONS = {
    "none": "of the levels as they are",
    "uniform": "of uniformly dequantised images, which by Jensen is a lower bound on that of the levels",
}


def paired_difference(a: Estimate, b: Estimate) -> Interval:
    """The mean of a - b in bits/dim over the same images, with Student's 95 % interval.

    Raises:
        UserError: Where the images are not the same.
    """
    assert a.indices is not None
    assert b.indices is not None
    if not torch.equal(a.indices, b.indices):
        raise UserError("compare: figures of unlike images cannot be paired")
    return student_interval(a.bits_per_dim - b.bits_per_dim)


def welch_difference(a: Estimate, b: Estimate) -> Interval:
    """mean(a) - mean(b) in bits/dim over different images, with Welch's 95 % interval."""
    from scipy.special import stdtrit

    first, second = a.mean(), b.mean()
    mean, va, vb = first.mean - second.mean, first.sem**2, second.sem**2
    if not va + vb > 0:  # one image, or no spread
        return Interval(mean, math.nan, math.nan, math.nan)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    sem = math.sqrt(va + vb)
    half = float(stdtrit(freedom, 0.975)) * sem
    return Interval(mean, mean - half, mean + half, sem)


@dataclass(frozen=True)
class Group:
    """Figures of one kind.

    Args:
        kind: The kind of the estimates.
        dequantization: What is done to the levels before they are measured; `none` where nothing is.
        rows: The evaluations, the best first.
        differences: Of each to the best, paired; None for the best itself.
    """

    kind: str
    dequantization: str
    rows: Sequence[Evaluation]
    differences: Sequence[Interval | None]

    @property
    def title(self) -> str:
        """The kind as bits/dim show it, and the dequantisation."""
        shown = "upper bound" if self.kind == "lower bound" else self.kind
        return f"bits/dim, {shown}; dequantisation: {self.dequantization}"

    @property
    def why(self) -> str:
        """What the figures of the group are, and so why they stand apart."""
        extra = DEQUANTIZATIONS.get(self.dequantization.split(",")[0], "of dequantised images")
        declared = "declared model" in self.dequantization
        of = " The model is one declared after training, for the sake of the measurement." if declared else ""
        return f"Each figure is {KINDS[self.kind]}; {extra}.{of}"


def dequantization_of(estimate: Estimate) -> str:
    """The dequantisation of a figure in words, with whatever else sets its meaning apart."""
    protocol = estimate.protocol
    parts = [str(protocol.get("dequantization") or "none")]
    if protocol.get("importance_weighted"):
        parts.append("importance-weighted")
    if "declared model" in str(protocol.get("model", "")):
        parts.append("declared model")
    return ", ".join(parts)


def group(evaluations: Sequence[Evaluation]) -> list[Group]:
    """Figures of the same images in groups of one kind and dequantisation, the best row first.

    The group of the best trained model comes first, groups without a trained model last.
    """
    found: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        key = (evaluation.estimate.kind, dequantization_of(evaluation.estimate))
        found.setdefault(key, []).append(evaluation)
    groups = []
    for (kind, dequantization), rows in found.items():
        rows = sorted(rows, key=_figure)
        best = rows[0].estimate
        differences = [None, *(paired_difference(row.estimate, best) for row in rows[1:])]
        groups.append(Group(kind, dequantization, rows, differences))
    return sorted(groups, key=lambda group: _rank(leader(group)))


def is_classical(evaluation: Evaluation) -> bool:
    """Whether a row stands there for scale only."""
    return evaluation.model["family"] == "classical"


def is_own(evaluation: Evaluation) -> bool:
    """Whether the images are of the data set that the model was trained on."""
    return not evaluation.protocol.data.get("foreign", False)


def leader(group: Group) -> Evaluation:
    """The best trained model of a group; the best of all rows where none is trained."""
    return min(group.rows, key=_rank)


def _rank(evaluation: Evaluation) -> tuple[bool, float]:
    return is_classical(evaluation), _figure(evaluation)


def _figure(evaluation: Evaluation) -> float:
    mean = evaluation.estimate.mean().mean
    return mean if math.isfinite(mean) else math.inf


def between(groups: Sequence[Group]) -> list[tuple[Evaluation, Evaluation, Interval]]:
    """The leader of each further group against that of the first, paired: (row, best, row - best)."""
    best, *rows = [leader(group) for group in groups]
    return [(row, best, paired_difference(row.estimate, best.estimate)) for row in rows]


def common_images(found: dict[str, list[Evaluation]], split: str) -> list[Evaluation]:
    """Of several runs' evaluations those of the same images: the largest set of a split that every run has.

    Args:
        found: Evaluations by run.
        split: The split to compare on.

    Raises:
        UserError: For a run without evaluation of the split, or runs that have no images in common.
    """
    by_run: dict[str, dict[str, int]] = {}
    for name, evaluations in found.items():
        of_split = [e for e in evaluations if e.protocol.data["split"] == split]
        own = [e for e in of_split if is_own(e)]
        if not own:
            hint = f"python -m diffusion evaluate {name} --split {split}"
            raise UserError(f"{name}: its {split} images are not measured yet; first: {hint}")
        by_run[name] = {e.protocol.data["sha256"]: int(e.protocol.data["images"]) for e in own}
    shared = set.intersection(*(set(hashes) for hashes in by_run.values()))
    if not shared:
        listed = "; ".join(
            f"{name}: {' or '.join(f'{count} images {digest[:12]}' for digest, count in hashes.items())}"
            for name, hashes in by_run.items()
        )
        raise UserError(f"compare: the runs were measured on unlike data, which cannot be compared ({listed})")
    first = next(iter(by_run.values()))
    chosen = max(sorted(shared), key=lambda digest: first[digest])
    return [
        e
        for evaluations in found.values()
        for e in evaluations
        if e.protocol.data["sha256"] == chosen and e.protocol.data["split"] == split and is_own(e)
    ]


def generalisation(found: dict[str, list[Evaluation]]) -> list[tuple[Evaluation, Evaluation, Interval]]:
    """Test and training figures of one run by one method and options: (test, train, test - train)."""
    pairs = []
    for evaluations in found.values():
        largest = {}
        for e in sorted(filter(is_own, evaluations), key=lambda e: int(e.protocol.data["images"])):
            key = (e.protocol.method, e.protocol.weights, repr(sorted(e.protocol.options.items())))
            largest.setdefault(key, {})[e.protocol.data["split"]] = e
        pairs += [
            (splits["test"], splits["train"], welch_difference(splits["test"].estimate, splits["train"].estimate))
            for splits in largest.values()
            if {"test", "train"} <= set(splits)
        ]
    return pairs
