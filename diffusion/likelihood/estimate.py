"""What every likelihood estimator returns: the value of each image, and all that is needed to trust and repeat it.

A likelihood is of the discrete datum (or, for continuous data, of the density): nats inside, bits/dim outside,

    bits/dim = -log P(x) / (D ln 2).

The 95 % interval of the mean is Student's, from the spread of the values over images: mean +- t_{n-1} s / sqrt(n), and
wider on the side of a long tail where the values are skew (`mean_interval`). The spread holds both the sampling of the
test set and the estimator's own noise (each image's noise is independent), so the interval is right even where the
noise of a single image is not known: it covers the figure of the population that the images were drawn from. It says
nothing of systematic errors (a solver's, the ends of the path) nor of a bound's gap.

The error budget holds errors of the mean by cause, in bits/dim, of two sorts. Random ones (probes, draws, noise, ...)
are standard errors of independent noise. Systematic ones (`SYSTEMATIC`) are sizes of a bias, common to all images; no
two of them need cancel. Hence

    error of the measurement    sqrt(sum of squares of the random) + sum of the systematic,
    total error                 "test set" + sum of the systematic,

the first of the mean of these very images, the second of the population's: "test set" is the spread over images, with
the random causes in it already, so they are not added to it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError, choose
from .law import law_of

KINDS = ("exact", "unbiased", "lower bound", "surrogate")

# The error of the mean that comes from the choice of images (and, with it, from whatever noise each image carries).
TEST_SET = "test set"
# What shifts every image alike, so that more of them do not average it away.
DATA_END, NOISE_END, SOLVER = "data end", "noise end", "solver"
SYSTEMATIC = (SOLVER, DATA_END, NOISE_END)
# The skewness, in its standard errors for normal values, from which on an interval takes it into account.
_SKEW = 2.0
# Terms that are no parts of log_prob: what tells whether importance weights are to be trusted (`importance_weights`).
EFFECTIVE_SAMPLES, TAIL_SHAPE = "log_effective_samples", "tail_shape"
DIAGNOSTICS = (EFFECTIVE_SAMPLES, TAIL_SHAPE)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and its standard error (nan where a single value leaves them unknown)."""

    mean: float
    low: float
    high: float
    sem: float


def student_interval(values: Float[Tensor, " n"]) -> Interval:
    """The mean of `values` and Student's 95 % interval of it, mean +- t_{n-1}(0.975) s / sqrt(n)."""
    from scipy.special import stdtrit  # comes with scikit-learn; imported where needed, as it is slow to load

    values, n = values.double(), len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan)
    sem = float(values.std()) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * sem
    return Interval(mean, mean - half, mean + half, sem)


def mean_interval(values: Float[Tensor, " n"]) -> Interval:
    """The mean of `values` and a 95 % interval of it: Student's, widened where they are too skew for it.

    Of skew values Student's misses the mean, nearly always on the side of the tail. Where the sample's skewness G is
    beyond 2 of its standard errors for normal values, either end is moved out to that of Hall's transformation (1992,
    J. R. Statist. Soc. B 54, 221-228) where that is wider: with T = (mean - mu) sqrt(n) / s, a = G / (3 sqrt(n)),

        T + a T^2 + a^2 T^3 / 3 + G / (6 sqrt(n))    within +- t_{n-1}.

    Coverage in per cent, Student's -> this (4,000 samples; with the ratio of the mean widths):

        n                            8                   32                  360                 1,000
        normal                95.2 -> 95.4 (1.06)  95.2 -> 95.3 (1.00)  95.3 -> 95.3 (1.00)  94.7 -> 94.7 (1.00)
        exponential           89.1 -> 91.0 (1.41)  92.8 -> 96.0 (1.30)  95.0 -> 95.9 (1.04)  95.2 -> 95.5 (1.02)
        log-normal            82.7 -> 85.9 (1.64)  88.8 -> 94.1 (1.77)  94.0 -> 96.0 (1.19)  94.6 -> 96.0 (1.09)
        2 % outliers by 10    92.9 -> 93.1 (1.39)  90.4 -> 90.5 (1.91)  94.1 -> 95.7 (1.09)  94.8 -> 95.8 (1.05)
        0.5 % outliers by 20  94.8 -> 95.0 (1.27)  92.2 -> 92.3 (1.47)  90.7 -> 91.2 (1.26)  93.5 -> 95.6 (1.12)

    Where the outliers are so few that a sample may have none, no interval that is made of the sample can know of them.
    """
    student, n = student_interval(values), len(values)
    if n < 3 or not student.sem > 0:
        return student
    gap = values.double() - student.mean
    skewness = float(gap.pow(3).mean() / gap.square().mean().pow(1.5)) * math.sqrt(n * (n - 1)) / (n - 2)
    if abs(skewness) <= _SKEW * math.sqrt(6.0 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))):
        return student
    a, b = skewness / (3.0 * math.sqrt(n)), skewness / (6.0 * math.sqrt(n))
    quantile = (student.high - student.mean) / student.sem
    low, high = (
        student.mean - student.sem * (math.cbrt(1.0 + 3.0 * a * (t - b)) - 1.0) / a for t in (quantile, -quantile)
    )
    return Interval(student.mean, min(low, student.low), max(high, student.high), student.sem)


def mean_error(std_error: Float[Tensor, " n"], dims: int) -> float:
    """The standard error in bits/dim of a mean over images, from the images' own in nats, independent of each other."""
    return float(std_error.double().square().sum().sqrt()) / (len(std_error) * dims * math.log(2.0))


@dataclass(frozen=True, eq=False)
class Estimate:
    """Log-likelihoods of a set of images, with their kind, their errors and their protocol.

    Args:
        log_prob: log P(x) of each datum in nats, float64 of shape (B,); of the density where `levels` is None.
        dims: The number D of dimensions of a datum.
        levels: The number of levels of a dimension, None for continuous data.
        std_error: Standard error of each log_prob in nats, from the estimator's own randomness: 0 where there is none,
            nan where one draw leaves it unknown.
        kind: `exact` (up to the solver's tolerance), `unbiased`, `lower bound` (in expectation), or `surrogate`.
        protocol: All that is needed to repeat the figure, as plain values; with `law`, which its estimator implies
            where it is not given (`likelihood.law`).
        indices: The images' own indices, which key their noise; 0 .. B - 1 by default.
        nfe: Network evaluations an image.
        seconds: Wall time.
        error_budget: Errors of the mean by cause, in bits/dim; "test set" (see `mean_interval`) is always there.
        terms: Parts of log_prob in nats, tensors of shape (B, ...); and `DIAGNOSTICS` of importance weights, (B,).

    Raises:
        UserError: For an unknown kind or law, or values that are not one a datum.
    """

    log_prob: Tensor = field(repr=False)
    dims: int
    levels: int | None
    std_error: Tensor = field(repr=False)
    kind: str
    protocol: Mapping[str, object]
    indices: Int[Tensor, " b"] | None = field(default=None, repr=False)
    nfe: float = 0.0
    seconds: float = 0.0
    error_budget: Mapping[str, float] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        choose("kind", self.kind, KINDS)
        if self.log_prob.ndim != 1 or self.log_prob.shape != self.std_error.shape:
            found = f"{tuple(self.log_prob.shape)} and {tuple(self.std_error.shape)}"
            raise UserError(f"log_prob, std_error: found shapes {found}; both need one value a datum, (B,)")
        object.__setattr__(self, "protocol", {**self.protocol, "law": law_of(self.protocol)})
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self)))
        object.__setattr__(self, "error_budget", {**self.error_budget, TEST_SET: self.mean().sem})

    def __len__(self) -> int:
        return len(self.log_prob)

    @property
    def law(self) -> str:
        """Whose likelihood it is: `flow`, `reverse SDE`, `chain of T steps` or `declared` (see `likelihood.law`)."""
        return str(self.protocol["law"])

    @property
    def nats_per_bit_per_dim(self) -> float:
        """D ln 2: what turns nats of a datum into bits/dim."""
        return self.dims * math.log(2.0)

    @property
    def bits_per_dim(self) -> Float[Tensor, " b"]:
        """-log_prob / (D ln 2) of each image, shape (B,); a lower bound of log_prob is an upper bound of this."""
        return -self.log_prob / self.nats_per_bit_per_dim

    def at(self, order: Int[Tensor, " b"]) -> Estimate:
        """The same estimate with its images in another order: `order` holds each place's present one."""
        assert self.indices is not None
        return replace(
            self,
            log_prob=self.log_prob[order],
            std_error=self.std_error[order],
            indices=self.indices[order],
            terms={name: term[order] for name, term in self.terms.items()},
        )

    def mean(self) -> Interval:
        """The mean bits/dim over the images with its 95 % interval (see the module's text for what it covers)."""
        return mean_interval(self.bits_per_dim)

    def with_error(self, cause: str, bits_per_dim: float) -> Estimate:
        """This estimate with one more entry in its error budget."""
        return replace(self, error_budget={**self.error_budget, cause: bits_per_dim})

    @property
    def random_error(self) -> float:
        """The standard error in bits/dim of the mean from the estimator's own randomness; nan where it is unknown."""
        causes = [error for cause, error in self.error_budget.items() if cause not in (*SYSTEMATIC, TEST_SET)]
        if not causes and bool(self.std_error.isnan().any()):
            return math.nan
        return math.hypot(*causes)

    @property
    def systematic_error(self) -> float:
        """The systematic entries of the budget, added up."""
        return sum(self.error_budget.get(cause, 0.0) for cause in SYSTEMATIC)

    @property
    def measurement_error(self) -> float:
        """The error in bits/dim of the mean over these very images (see the module's text)."""
        return self.random_error + self.systematic_error

    @property
    def total_error(self) -> float:
        """The error in bits/dim of the mean, with the choice of the images (see the module's text)."""
        return self.error_budget[TEST_SET] + self.systematic_error

    @staticmethod
    def join(parts: Sequence[Estimate]) -> Estimate:
        """One estimate from those of disjoint sets of images made under one protocol.

        Seconds add up, NFE is the mean over images. Of the budget (errors of means over images) the random causes are
        independent between parts and add up in quadrature; systematic ones, alike in all parts, are averaged. Terms
        are those that all parts have.

        Raises:
            UserError: For no part, parts of unlike protocol, or an image that is in two parts.
        """
        if not parts:
            raise UserError("estimate: nothing to join")
        first = parts[0]
        for part in parts[1:]:
            for name in ("dims", "levels", "kind", "protocol"):
                ours, theirs = getattr(first, name), getattr(part, name)
                if ours != theirs:
                    raise UserError(f"estimate: cannot join estimates of unlike {name}: {ours} and {theirs}")
        indices = torch.cat([part.indices for part in parts if part.indices is not None])
        if len(indices.unique()) < len(indices):
            raise UserError("estimate: an image is in two of the estimates to join; each image counts once")
        n = len(indices)
        shares = [len(part) / max(n, 1) for part in parts]
        budget = {}
        for cause in first.error_budget:
            errors = [share * part.error_budget[cause] for share, part in zip(shares, parts, strict=True)]
            budget[cause] = sum(errors) if cause in SYSTEMATIC else math.hypot(*errors)
        return Estimate(
            log_prob=torch.cat([part.log_prob for part in parts]),
            dims=first.dims,
            levels=first.levels,
            std_error=torch.cat([part.std_error for part in parts]),
            kind=first.kind,
            protocol=first.protocol,
            indices=indices,
            nfe=sum(share * part.nfe for share, part in zip(shares, parts, strict=True)),
            seconds=sum(part.seconds for part in parts),
            error_budget=budget,
            terms={
                name: torch.cat([part.terms[name] for part in parts])
                for name in first.terms
                if all(name in part.terms for part in parts)  # one kept by an earlier release may have fewer
            },
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, with None for nan: the summary, then one entry an image."""

        def plain(value: float) -> float | None:
            return value if math.isfinite(value) else None

        interval = self.mean()
        assert self.indices is not None
        return {
            "kind": self.kind,
            "law": self.law,
            "images": len(self),
            "dims": self.dims,
            "levels": self.levels,
            "bits_per_dim": plain(interval.mean),
            "interval_95": [plain(interval.low), plain(interval.high)],
            "sem": plain(interval.sem),
            "error_budget": {cause: plain(error) for cause, error in self.error_budget.items()},
            "measurement_error": plain(self.measurement_error),
            "total_error": plain(self.total_error),
            "nfe": self.nfe,
            "seconds": self.seconds,
            "protocol": dict(self.protocol),
            "terms_bits_per_dim": {
                name: (-term.double().mean(0) / self.nats_per_bit_per_dim).tolist()
                for name, term in self.terms.items()
                if name not in DIAGNOSTICS
            },
            "indices": self.indices.tolist(),
            "log_prob": [plain(value) for value in self.log_prob.tolist()],
            "std_error": [plain(value) for value in self.std_error.tolist()],
        }

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Estimate:
        """What `to_dict` made plain; terms, of which that has the means alone, where they are under `terms`.

        Raises:
            ValueError, KeyError, TypeError, ...: For values that are none of `to_dict`, or not of each other.
        """

        def numbers(values: Sequence[float | None]) -> Tensor:
            return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)

        listed, terms = plain["indices"], plain.get("terms", {})
        lengths = {len(values) for values in (plain["log_prob"], plain["std_error"], listed, *terms.values())}
        if lengths != {plain["images"]} or len(set(listed)) < len(listed):
            raise ValueError(f"{plain['images']} images are announced, {len(plain['log_prob'])} values found")
        estimate = Estimate(
            log_prob=numbers(plain["log_prob"]),
            dims=int(plain["dims"]),
            levels=None if plain["levels"] is None else int(plain["levels"]),
            std_error=numbers(plain["std_error"]),
            kind=str(plain["kind"]),
            protocol=dict(plain["protocol"]),
            indices=torch.tensor(plain["indices"], dtype=torch.long),
            nfe=float(plain["nfe"]),
            seconds=float(plain["seconds"]),
            error_budget={str(k): math.nan if v is None else float(v) for k, v in plain["error_budget"].items()},
            terms={str(name): numbers(values) for name, values in terms.items()},
        )
        mean = estimate.mean().mean
        if plain["bits_per_dim"] is not None and not math.isclose(mean, plain["bits_per_dim"], rel_tol=1e-12):
            raise ValueError(f"says {plain['bits_per_dim']} bits/dim, and its values have the mean {mean}")
        return estimate
