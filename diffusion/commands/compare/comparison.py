"""Differences of results with intervals: paired on the same images, unpaired between splits.

Results of two models on the same images share the variation between images (some digits are hard for every model), so
the mean difference has a much narrower interval than the difference of the means:

    mean(a - b) +- t_{n-1}(0.975) s(a - b) / sqrt(n)      wider for skew differences: `estimate.mean_interval`

Test and training images cannot be paired: the interval is Welch's.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import UserError
from ...likelihood import Estimate, Interval
from ...likelihood.estimate import mean_interval
from ...processes import typed
from ..records import Evaluation
from ..subjects import CONDITION_DIGEST


def paired_difference(a: Estimate, b: Estimate) -> Interval:
    """The mean of a - b in bits/dim over the same images, with its 95 % interval.

    Raises:
        UserError: Where the images are not the same.
    """
    assert a.indices is not None
    assert b.indices is not None
    if not torch.equal(a.indices, b.indices):
        raise UserError("compare: figures of unlike images cannot be paired")
    return mean_interval(a.bits_per_dim - b.bits_per_dim)


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


def is_classical(evaluation: Evaluation) -> bool:
    """Whether a row is a classical model, for scale only."""
    return evaluation.model["family"] == "classical"


def condition_of(evaluation: Evaluation) -> str:
    """The SHA-256 of the conditions that images were measured under; empty without any."""
    return str(evaluation.protocol.data.get(CONDITION_DIGEST, ""))


def is_own(evaluation: Evaluation) -> bool:
    """Whether the images are of the data set that the model was trained on."""
    return not evaluation.protocol.data.get("foreign", False)


def is_of_first_images(evaluation: Evaluation, sizes: Mapping[str, object]) -> bool:
    """Whether a figure is of the first images of a file, as releases before the fixed order took them.

    Those may all be of one class, so they are compared only among themselves.

    Args:
        evaluation: The figure.
        sizes: The number of images of each split of the run's own data, as "test_images" (the run's provenance).
    """
    data = evaluation.protocol.data
    whole = sizes.get(f"{data['split']}_images", data["images"])
    return is_own(evaluation) and "of" not in data and data["images"] != whole


def common_images(
    found: dict[str, list[Evaluation]], split: str, is_last: Callable[[Evaluation], bool] = lambda evaluation: False
) -> list[Evaluation]:
    """The evaluations of several runs on the same images: the largest set of a split that all of them have.

    Sets that all of them have under one condition, or without any, come before larger ones that they have not.

    Args:
        found: Evaluations by run.
        split: The split to compare on.
        is_last: Whether an evaluation is used only if there are no others.

    Raises:
        UserError: For a run without evaluation of the split, or runs that have no images in common.
    """
    by_run: dict[str, dict[str, tuple[bool, int]]] = {}
    alike: list[set[tuple[str, str]]] = []
    for name, evaluations in found.items():
        of_split = [e for e in evaluations if e.protocol.data["split"] == split]
        own = [e for e in of_split if is_own(e)]
        if not own:
            hint = f"{typed('evaluate')} {shlex.quote(name)} --split {split}"
            raise UserError(f"{name}: its {split} data are not measured yet; first: {hint}")
        alike.append({(e.protocol.data["sha256"], condition_of(e)) for e in own})
        by_run[name] = {e.protocol.data["sha256"]: (not is_last(e), int(e.protocol.data["images"])) for e in own}
    shared = set.intersection(*(set(hashes) for hashes in by_run.values()))
    if not shared:
        listed = "; ".join(
            f"{name}: {' or '.join(f'{count} images {digest[:12]}' for digest, (_, count) in hashes.items())}"
            for name, hashes in by_run.items()
        )
        raise UserError(f"compare: the runs were measured on unlike data, which cannot be compared ({listed})")
    first = next(iter(by_run.values()))
    fair = {digest for digest, _ in set.intersection(*alike)}
    chosen = max(sorted(shared), key=lambda digest: (digest in fair, *first[digest]))
    return [
        e
        for evaluations in found.values()
        for e in evaluations
        if e.protocol.data["sha256"] == chosen and e.protocol.data["split"] == split and is_own(e)
    ]


def of_other_images(found: Mapping[str, Sequence[Evaluation]], compared: Sequence[Evaluation]) -> list[str]:
    """A line for each estimator of a run that has figures of the split, but none of the images that are compared."""
    split, there = compared[0].protocol.data["split"], {(e.model["run"], e.protocol.method) for e in compared}
    left: dict[tuple[str, str], set[int]] = {}
    for name, evaluations in found.items():
        for e in evaluations:
            if e.protocol.data["split"] == split and is_own(e) and (name, e.protocol.method) not in there:
                left.setdefault((name, e.protocol.method), set()).add(int(e.protocol.data["images"]))
    lines = []
    for (name, method), counts in left.items():
        listed = " and ".join(f"{count:,}" for count in sorted(counts))
        lines.append(f"{name} {method}: left out, its figures are of {listed} images, not of these")
    return lines


@dataclass(frozen=True)
class Gap:
    """What a model loses on test images compared with training images.

    Args:
        test: The figure on test images.
        train: The same model's on training images, by the same method and options.
        difference: test - train in bits/dim, unpaired: the images of the two splits are not the same.
    """

    test: Evaluation
    train: Evaluation
    difference: Interval


def gaps(rows: Sequence[Evaluation], found: Mapping[str, Sequence[Evaluation]]) -> list[Gap]:
    """Test against training images wherever both were measured in the same way.

    Args:
        rows: The evaluations that are compared; each is one side of its own gap.
        found: All evaluations by run. Of several on the other split, the one with most images is used.
    """
    made = []
    for row in rows:
        split = row.protocol.data["split"]
        others = [e for e in found.get(str(row.model["run"]), ()) if e.protocol.asks == row.protocol.asks and is_own(e)]
        others = [e for e in others if {e.protocol.data["split"], split} == {"test", "train"}]
        if not others or is_classical(row):
            continue
        other = max(others, key=lambda e: int(e.protocol.data["images"]))
        test, train = (row, other) if split == "test" else (other, row)
        made.append(Gap(test, train, welch_difference(test.estimate, train.estimate)))
    return made
