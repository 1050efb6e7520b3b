"""The result of every likelihood estimator: the value of each image, and all that is needed to trust and repeat it.

A likelihood is that of discrete data (or, for continuous data, a density): nats internally, bits/dim in reports,

    bits/dim = -log P(x) / (D ln 2).

The 95 % interval of the mean is Student's, from the spread of the values over images: mean +- t_{n-1} s / sqrt(n), and
wider on the side of a long tail if the values are skewed (`mean_interval`). The spread includes both the sampling of
the test set and the estimator's noise (independent between images), so the interval is valid even if the noise of a
single image is unknown: it covers the figure of the population from which the images were drawn. It includes neither
systematic errors (a solver's, the ends of the path) nor the gap of a bound.

The error budget lists errors of the mean by cause, in bits/dim, of two types. Random ones (probes, draws, noise, ...)
are standard errors of independent noise. Systematic ones (`SYSTEMATIC`) are magnitudes of a bias common to all images,
which need not cancel. Hence

    error of the measurement    sqrt(sum of squares of the random) + sum of the systematic,
    total error                 the larger of "test set" and the first root + sum of the systematic,

the first for the mean of these images, the second for the population: "test set" is the spread over images, which
already includes the random causes, so they are not added again. The spread over few images can by chance be smaller
than the random causes, which are then the better estimate, for the total error and for the interval.
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
# Errors that shift every image alike, so more images do not average them out.
DATA_END, NOISE_END, SOLVER = "data end", "noise end", "solver"
SYSTEMATIC = (SOLVER, DATA_END, NOISE_END)
# The skewness, in its standard errors for normal values, from which an interval accounts for it.
_SKEW = 2.0
# Terms that are not parts of log_prob: diagnostics of importance weights (`importance_weights`).
EFFECTIVE_SAMPLES, TAIL_SHAPE = "log_effective_samples", "tail_shape"
DIAGNOSTICS = (EFFECTIVE_SAMPLES, TAIL_SHAPE)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and its standard error (nan for a single value)."""

    mean: float
    low: float
    high: float
    sem: float

    def __str__(self) -> str:
        found = f"{self.low:.4f} to {self.high:.4f}" if math.isfinite(self.low) else "unknown"  # of one value
        return f"{self.mean:.4f} (95 % interval {found})"


def _student(n: int) -> float:
    """t_{n-1}(0.975)."""
    from scipy.special import stdtrit  # comes with scikit-learn; imported where needed, as it is slow to load

    return float(stdtrit(n - 1, 0.975))


def student_interval(values: Float[Tensor, " n"]) -> Interval:
    """The mean of `values` and Student's 95 % interval of it, mean +- t_{n-1}(0.975) s / sqrt(n)."""
    values, n = values.double(), len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan)
    sem = float(values.std()) / math.sqrt(n)
    half = _student(n) * sem
    return Interval(mean, mean - half, mean + half, sem)


def mean_interval(values: Float[Tensor, " n"]) -> Interval:
    """The mean of `values` and a 95 % interval of it: Student's, widened for skewed values.

    For skewed values Student's misses the mean, nearly always on the side of the tail. If the sample skewness G exceeds
    2 of its standard errors for normal values, either end is moved out to that of Hall's transformation (1992, J. R.
    Statist. Soc. B 54, 221-228) if that is wider: with T = (mean - mu) sqrt(n) / s, a = G / (3 sqrt(n)),

        T + a T^2 + a^2 T^3 / 3 + G / (6 sqrt(n))    within +- t_{n-1}.

    docs/likelihood.md has the measured coverage. If outliers are so rare that a sample may have none, no interval
    computed from the sample can account for them.
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
    """The standard error in bits/dim of a mean over images, from independent standard errors of the images in nats."""
    return float(std_error.double().square().sum().sqrt()) / (len(std_error) * dims * math.log(2.0))


@dataclass(frozen=True, eq=False)
class Estimate:
    """Log-likelihoods of a set of images, with their kind, their errors and their protocol.

    Args:
        log_prob: log P(x) of each image in nats, float64 of shape (B,); of the density if `levels` is None.
        dims: The number D of dimensions of an image.
        levels: The number of levels per dimension, None for continuous data.
        std_error: Standard error of each log_prob in nats, from the estimator's own randomness: 0 if there is none, nan
            if it cannot be known from one draw.
        kind: `exact` (up to the solver's tolerance), `unbiased`, `lower bound` (in expectation), or `surrogate`.
        protocol: All that is needed to repeat the figure, as plain values; with `law`, which the estimator implies if
            it is not given (`likelihood.law`).
        indices: The indices of the images, which key their noise; 0 .. B - 1 by default.
        nfe: Network evaluations per image.
        seconds: Wall time.
        error_budget: Errors of the mean by cause, in bits/dim; always includes "test set" (see `mean_interval`).
        terms: Parts of log_prob in nats, tensors of shape (B, ...); and `DIAGNOSTICS` of importance weights, (B,).

    Raises:
        UserError: For an unknown kind or law, or values or indices that are not one per image.
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
            raise UserError(f"log_prob, std_error: found shapes {found}; both need one value per sample, (B,)")
        object.__setattr__(self, "protocol", {**self.protocol, "law": law_of(self.protocol)})
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self)))
        elif self.indices.shape != self.log_prob.shape:
            raise UserError(f"indices: found shape {tuple(self.indices.shape)} for {len(self)} values; needs one each")
        spread = mean_interval(self.bits_per_dim).sem
        object.__setattr__(self, "error_budget", {**self.error_budget, TEST_SET: spread})

    def __len__(self) -> int:
        return len(self.log_prob)

    @property
    def law(self) -> str:
        """Whose likelihood it is: `flow`, `reverse SDE`, `chain of T steps` or `declared` (see `likelihood.law`)."""
        return str(self.protocol["law"])

    @property
    def nats_per_bit_per_dim(self) -> float:
        """D ln 2: converts nats per image into bits/dim."""
        return self.dims * math.log(2.0)

    @property
    def bits_per_dim(self) -> Float[Tensor, " b"]:
        """-log_prob / (D ln 2) of each image, shape (B,); a lower bound on log_prob is an upper bound on this."""
        return -self.log_prob / self.nats_per_bit_per_dim

    @property
    def nats_per_dim(self) -> Float[Tensor, " b"]:
        """-log_prob / D of each sample, shape (B,): the unit of densities, which are not counted in bits."""
        return -self.log_prob / self.dims

    def shifted(self, constant: float, protocol: Mapping[str, object]) -> Estimate:
        """The same estimate in other units of the data, whose log-density differs by a constant in nats.

        Args:
            constant: log |det| of the change of units.
            protocol: What to say of it.
        """
        terms = {**self.terms, "change of units": torch.full_like(self.log_prob, constant)} if self.terms else {}
        return replace(self, log_prob=self.log_prob + constant, protocol={**self.protocol, **protocol}, terms=terms)

    def at(self, order: Int[Tensor, " b"]) -> Estimate:
        """The same estimate with its images in another order: `order` holds the current position of each."""
        assert self.indices is not None
        return replace(
            self,
            log_prob=self.log_prob[order],
            std_error=self.std_error[order],
            indices=self.indices[order],
            terms={name: term[order] for name, term in self.terms.items()},
        )

    def mean(self) -> Interval:
        """The mean bits/dim over the images with its 95 % interval (see the module docstring for what it covers)."""
        found, random = mean_interval(self.bits_per_dim), self.random_error
        if not random > found.sem:
            return found
        half = _student(len(self)) * random
        return Interval(found.mean, min(found.low, found.mean - half), max(found.high, found.mean + half), random)

    def with_error(self, cause: str, bits_per_dim: float) -> Estimate:
        """This estimate with one more entry in its error budget."""
        return replace(self, error_budget={**self.error_budget, cause: bits_per_dim})

    @property
    def random_error(self) -> float:
        """The standard error in bits/dim of the mean from the estimator's own randomness; nan if unknown."""
        causes = [error for cause, error in self.error_budget.items() if cause not in (*SYSTEMATIC, TEST_SET)]
        if not causes and bool(self.std_error.isnan().any()):
            return math.nan
        return math.hypot(*causes)

    @property
    def systematic_error(self) -> float:
        """The sum of the systematic entries of the budget."""
        return sum(self.error_budget.get(cause, 0.0) for cause in SYSTEMATIC)

    @property
    def measurement_error(self) -> float:
        """The error in bits/dim of the mean over these images (see the module docstring)."""
        return self.random_error + self.systematic_error

    @property
    def total_error(self) -> float:
        """The error in bits/dim of the mean, including the choice of images (see the module docstring)."""
        spread, random = self.error_budget[TEST_SET], self.random_error
        return (random if random > spread else spread) + self.systematic_error  # unlike max, nan spread stays nan

    @staticmethod
    def join(parts: Sequence[Estimate]) -> Estimate:
        """One estimate from those of disjoint sets of images with the same protocol.

        Seconds add up, NFE is the mean over images. In the budget (errors of means over images) random causes are
        independent between parts and add up in quadrature; systematic ones, common to all parts, are averaged. Terms
        are those common to all parts.

        Raises:
            UserError: For no part, parts with different protocols, or an image in two parts.
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
                if all(name in part.terms for part in parts)  # one stored by an earlier release may have fewer
            },
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, with None for nan: the summary, then one entry per image."""

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
        """The inverse of `to_dict`; of the terms, which that reduces to means, only what is under `terms`.

        Raises:
            ValueError, KeyError, TypeError, ...: For values not from `to_dict`, or inconsistent ones.
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
