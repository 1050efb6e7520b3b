"""Where the bits go: the terms of a bound, and its integral over log-SNR as a curve.

A diffusion model's bound is an integral over the log-SNR lambda and the terms at its two ends,

    bits/dim = prior + reconstruction + integral of c(lambda) dlambda,    c = E||eps - eps_hat||^2 / (2 D ln 2)

(Kingma et al. 2021, arXiv 2107.00630, eq. 11-17), so c shows at which noise levels a model spends its bits. For
dequantised images c tends to 1 / (2 ln 2) at high log-SNR, where the noise is finer than that of the dequantisation;
the reconstruction term compensates for it, and models differ in where the curve rises. Where test images cost more
than training images, the model has memorised these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...likelihood import Interval
from ..records import Evaluation
from .comparison import Gap, is_classical, is_own

# In the order of the path, from noise to data; `prior` is a Kullback-Leibler divergence for every family.
TERMS = ("prior", "diffusion", "reconstruction")
_NORMAL_95 = 1.959964


@dataclass(frozen=True, eq=False)
class Curve:
    """Bits/dim per unit of log-SNR, in bins of equal width.

    Args:
        name: The model.
        split: The images, test or train.
        images: Their number.
        low, high: The ends of the log-SNR axis.
        density: The mean over images, shape (bins,), float64.
        sem: Its standard error over images, shape (bins,); nan if unknown.
    """

    name: str
    split: str
    images: int
    low: float
    high: float
    density: Tensor
    sem: Tensor

    @property
    def edges(self) -> list[float]:
        """The ends of the bins."""
        return torch.linspace(self.low, self.high, len(self.density) + 1, dtype=torch.float64).tolist()

    @property
    def middles(self) -> list[float]:
        """The middles of the bins."""
        return [0.5 * (low + high) for low, high in pairwise(self.edges)]

    def label(self, unit: str) -> str:
        """The model, the split and the number of images, or of what `unit` says."""
        return f"{self.name}, {self.split} ({self.images} {unit})"


@dataclass(frozen=True)
class CurvePair:
    """A model's curves: of test images, of training images, or of both; at least one is there."""

    test: Curve | None
    train: Curve | None

    @property
    def curves(self) -> list[Curve]:
        """Those that are there."""
        return [curve for curve in (self.test, self.train) if curve is not None]

    @property
    def name(self) -> str:
        """The model."""
        return self.curves[0].name


def curve_of(evaluation: Evaluation) -> Curve | None:
    """The curve of an evaluation; None for an estimator without one."""
    means, ends = evaluation.terms.get("curve"), evaluation.estimate.protocol.get("curve_log_snr")
    if not (isinstance(means, list) and isinstance(ends, list) and len(ends) == 2 and is_own(evaluation)):
        return None
    low, high = (float(end) for end in ends)
    width = (high - low) / len(means)
    sem = evaluation.spread.get("curve") or [None] * len(means)
    data = evaluation.protocol.data
    return Curve(
        name=str(evaluation.model["run"]),
        split=str(data["split"]),
        images=int(data["images"]),
        low=low,
        high=high,
        density=torch.tensor(means, dtype=torch.float64) / width,
        sem=torch.tensor([math.nan if v is None else v for v in sem], dtype=torch.float64) / width,
    )


def pair_curves(rows: Sequence[Evaluation], gaps: Sequence[Gap]) -> list[CurvePair]:
    """One pair for each model with a curve, in the order of the rows, from the evaluation with most noise levels.

    Args:
        rows: The evaluations that are compared.
        gaps: Theirs, which hold the other split's evaluations.
    """
    best: dict[str, Evaluation] = {}
    for row in rows:
        name = str(row.model["run"])
        if curve_of(row) is not None and (name not in best or _noise_levels(row) > _noise_levels(best[name])):
            best[name] = row
    pairs = []
    for row in best.values():
        sides = next(((gap.test, gap.train) for gap in gaps if row in (gap.test, gap.train)), (row,))
        curves = {curve.split: curve for curve in map(curve_of, sides) if curve is not None}
        pairs.append(CurvePair(curves.get("test", curves.get("validation")), curves.get("train")))
    return pairs


def _noise_levels(row: Evaluation) -> int:
    evaluations = row.estimate.protocol.get("evaluations")
    return evaluations if isinstance(evaluations, int) else 0


def overfit(pair: CurvePair) -> list[Interval] | None:
    """Test minus train of each bin, unpaired, with the normal 95 % interval; None without both on one axis."""
    test, train = pair.test, pair.train
    if test is None or train is None or test.edges != train.edges:
        return None
    difference, sem = test.density - train.density, torch.hypot(test.sem, train.sem)
    half = _NORMAL_95 * sem
    return [
        Interval(*values)
        for values in zip(
            difference.tolist(), (difference - half).tolist(), (difference + half).tolist(), sem.tolist(), strict=True
        )
    ]


def parts_of(evaluation: Evaluation) -> dict[str, float] | None:
    """The terms of a bound in bits/dim, which add up to it; None for an estimate without such terms.

    An autoencoder's bound has no diffusion term, and its `prior` is KL(q(z | x) || p(z)).
    """
    found = {name: float(evaluation.terms[name]) for name in TERMS if isinstance(evaluation.terms.get(name), float)}
    whole = evaluation.estimate.mean().mean
    if is_classical(evaluation) or not {"prior", "reconstruction"} <= set(found):
        return None
    return found if math.isclose(math.fsum(found.values()), whole, rel_tol=1e-6, abs_tol=1e-6) else None
