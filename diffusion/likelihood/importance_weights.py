"""The log of a mean of importance weights: its value, its error as an estimate of log E w, and when to trust it.

K independent weights w_k >= 0 with E w = P. The estimate L = log(1/K sum w_k) is a lower bound of log P in expectation
(Jensen). With gamma the sample skewness of the weights, and ESS = (sum w)^2 / sum w^2 their effective number,

    delta method        s = sqrt((K / ESS - 1) / (K - 1)), the standard error of log of a mean
    skewness            s (1 + c gamma^2 / K),        c = (z^4 + 2 z^2 - 3) / 18 = 1.08 for z = 1.96
    missing weights     in quadrature with L_t - L, if ESS < sqrt(K)

Skewness: weights that happened to miss the peak have a small mean *and* a small standard deviation, so delta-method
intervals fail too often, mostly on the upper side. The loss of coverage of two-sided Student intervals of a mean due to
skewness is, to order 1 / K, 2 z phi(z) c gamma^2 / K, phi the normal density (Hall 1988, Annals of Statistics 16, 927:
q_2), which this factor compensates. The neglected terms have the opposite sign for weights skewed to the right: the
kurtosis, and the effect of the logarithm, z^2 (z^2 - 3) gamma v / 6 and more, v = sd(w) / E w. The error is thus on the
safe side, which compensates for sample skewness being smaller than that of the law.

Missing weights: s cannot exceed 1, although L may be tens of nats too low if one weight dominates. Then
phi(b) = log E w^b is known only for small powers b, and extrapolated to b = 1,

    L_t = phi(b) + (1 - b) phi'(b) + (1 - b)^2 phi''(b) / 2,       b the power of ESS sqrt(K),

which is exact for log-normal weights (a cumulant expansion, Zwanzig 1954). L_t is not used as an estimate, only to
gauge the error of L; with sqrt(K) effective samples, b = 1 and nothing is added.

The error is thus that of L as an estimate of log P, including the bias of the logarithm, for use as +- t_{K-1} errors.
docs/likelihood.md has the measured coverage.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .estimate import EFFECTIVE_SAMPLES, TAIL_SHAPE, Estimate

_Z = 1.96
_SKEWNESS = (_Z**4 + 2.0 * _Z**2 - 3.0) / 18.0
# The names of the number K of weights in the estimators' protocols.
_COUNTS = ("samples", "chains", "draws")
# Steps of the bisection for a power.
_HALVINGS = 40


class LogMeanExp:
    """log of the mean of exp(log_w) over samples added in chunks, for each row separately.

    The log-weights are stored, 8 bytes each. A weight of zero (log_w = -inf) is a sample like any other.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, log_w: Float[Tensor, " b s"]) -> None:
        """Add S samples per row."""
        self._parts.append(log_w.detach().double())

    @property
    def log_weights(self) -> Float[Tensor, " b k"]:
        """All samples so far, on the CPU."""
        parts = [part.cpu() for part in self._parts]  # here, so that nothing waits for one chunk to add the next
        self._parts = parts if len(parts) == 1 else [torch.cat(parts, dim=1)]
        return self._parts[0]

    @property
    def count(self) -> int:
        """The number K of samples so far."""
        return self.log_weights.shape[1]

    @property
    def mean_log(self) -> Float[Tensor, " b"]:
        """The mean of log_w."""
        return self.log_weights.mean(1)

    @property
    def value(self) -> Float[Tensor, " b"]:
        """L = log sum w - log K."""
        return self.log_weights.logsumexp(1) - math.log(self.count)

    @property
    def effective_samples(self) -> Float[Tensor, " b"]:
        """ESS, between 1 and K."""
        return _effective_samples(self.log_weights)

    @property
    def std_error(self) -> Float[Tensor, " b"]:
        """The error of `value` as an estimate of log E w (see the module docstring); nan for one sample."""
        log_w, count, ess = self.log_weights, self.count, self.effective_samples
        if count < 2:
            return torch.full_like(log_w[:, 0], math.nan)
        delta = ((count / ess - 1.0).clamp(min=0.0) / (count - 1)).sqrt()
        skewed = delta * (1.0 + _SKEWNESS * _skewness(log_w).square() / count)
        return torch.hypot(skewed, self._missing)

    @property
    def diagnostics(self) -> dict[str, Float[Tensor, " b"]]:
        """Terms of an `Estimate` (`DIAGNOSTICS`): `log_effective_samples`, and `tail_shape` for 21 samples or more."""
        found = {EFFECTIVE_SAMPLES: self.effective_samples.log()}
        return found | ({TAIL_SHAPE: tail_shape(self.log_weights)} if tail_size(self.count) >= FEWEST else {})

    @property
    def _missing(self) -> Float[Tensor, " b"]:
        """L_t - L, and 0 for rows with sqrt(K) effective samples."""
        enough = math.sqrt(self.count)
        few = self.effective_samples < enough
        found = torch.zeros_like(self.value)
        found[few] = _continued(self.log_weights[few], enough) - self.value[few]
        return found


def unreliable(estimate: Estimate) -> Bool[Tensor, " b"] | None:
    """Which images have importance weights, and errors, that cannot be trusted; None if there are no weights.

    Those whose tail shape is not below `reliable_below`; for fewer than 21 weights, those with less than two effective
    ones. A single unflagged image among flagged ones is not reliable: weights that missed the peak show no tail.
    """
    log_ess = estimate.terms.get(EFFECTIVE_SAMPLES)
    if log_ess is None:
        return None
    shape = estimate.terms.get(TAIL_SHAPE)
    if shape is None:
        return ~(log_ess >= math.log(2.0))
    count = next(int(str(estimate.protocol[name])) for name in _COUNTS if name in estimate.protocol)
    return ~(shape < reliable_below(count))


def _effective_samples(log_w: Tensor) -> Tensor:
    return (2.0 * log_w.logsumexp(1) - (2.0 * log_w).logsumexp(1)).exp()


def _skewness(log_w: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
    """The sample skewness m_3 / m_2^(3/2) of the weights, at most sqrt(K); 0 for equal ones."""
    w = (log_w - log_w.amax(1, keepdim=True)).exp()
    d = w - w.mean(1, keepdim=True)
    second = d.square().mean(1)
    return torch.where(second > 0, d.pow(3).mean(1) / second.clamp(min=1e-300).pow(1.5), 0.0)


def _continued(log_w: Float[Tensor, " b k"], enough: float) -> Float[Tensor, " b"]:
    """log E w extrapolated from the power b of the weights that has `enough` effective samples."""
    # not from 0, for which weights of zero would not remain zero
    low, high = torch.full_like(log_w[:, 0], 0.5**_HALVINGS), torch.ones_like(log_w[:, 0])
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        fits = _effective_samples(middle[:, None] * log_w) >= enough
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    tempered = low[:, None] * log_w
    p = tempered.softmax(1)
    mean = _expectation(p, log_w)
    variance = _expectation(p, (log_w - mean[:, None]).square())
    phi = tempered.logsumexp(1) - math.log(log_w.shape[1])
    return phi + (1.0 - low) * mean + 0.5 * (1.0 - low).square() * variance


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """Sum of p values, ignoring values of zero probability, even infinite ones."""
    return torch.where(p > 0, p * values, 0.0).sum(1)


# The number of exceedances required by a fit.
FEWEST = 5
_PRIOR_SHAPE, _PRIOR_COUNT = 0.5, 10
# Weights with smaller relative differences have no tail beyond rounding.
_CONSTANT = 1e-9


def tail_size(count: int) -> int:
    """The number of exceedances used for this many weights: min(K / 5, 3 sqrt(K)) (arXiv 1507.02646, eq. 13)."""
    return math.ceil(min(count / 5.0, 3.0 * math.sqrt(count)))


def reliable_below(count: int) -> float:
    """The tail shape from which a mean of this many weights cannot be trusted (see the module docstring)."""
    return min(1.0 - 1.0 / math.log10(count), 0.7)


def tail_shape(log_w: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
    """The shape k of the tail of each row's weights; nan for fewer than `FEWEST` exceedances, 0 for equal weights."""
    size = tail_size(log_w.shape[1])
    if size < FEWEST:
        return torch.full_like(log_w[:, 0], math.nan)
    top = log_w.topk(size + 1, dim=1).values
    w = (top - top[:, :1]).exp()
    exceedances = (w[:, :-1] - w[:, -1:]).flip(1)  # in increasing order
    shape = _fit(exceedances)
    return torch.where(exceedances[:, -1] > _CONSTANT, shape, 0.0)


def _fit(x: Float[Tensor, " b n"]) -> Float[Tensor, " b"]:
    """k of exceedances x in increasing order, by Zhang and Stephens' mean over a grid of b = -k / sigma."""
    n = x.shape[1]
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    points = 30 + math.isqrt(n)
    j = torch.arange(1, points + 1, dtype=x.dtype)
    quartile = x[:, math.floor(n / 4 + 0.5) - 1, None]
    b = 1.0 / x[:, -1:] + (1.0 - (points / (j - 0.5)).sqrt()) / (3.0 * quartile)  # (B, points)
    shapes = torch.log1p(-b[:, :, None] * x[:, None]).mean(2)
    log_likelihood = n * ((-b / shapes).log() - shapes - 1.0)
    best = (b * log_likelihood.softmax(1)).sum(1, keepdim=True)
    shape = torch.log1p(-best * x).mean(1)
    return (n * shape + _PRIOR_COUNT * _PRIOR_SHAPE) / (n + _PRIOR_COUNT)
