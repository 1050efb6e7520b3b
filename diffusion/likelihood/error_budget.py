"""The rest of the error budget: causes that do not show in the estimate itself, measured on a few of its images.

The measurement is repeated on m of the n images (the first in the fixed order, `random.fixed_order`) with one setting
changed and the same dequantised points and probes. With d_i the change of image i in bits/dim:

    solver      tolerance / 10 (for fixed steps, twice as many)      sqrt(mean(d)^2 + s_d^2 / m) / (1 - share left)
    data end    the path stops where the noise in the data is twice that of t_min       sqrt(mean(d)^2 + s_d^2 / m)
    noise end   the prior takes over where there is twice as much signal as at t_max    sqrt(mean(d)^2 + s_d^2 / m)
    probes, draws, if a single one leaves their spread unknown: the same images with two of each

The root is the root mean square of the possible bias: its estimate and the uncertainty of that. A solver of order p
retains 2^-p of its error at twice the steps, and an adaptive one about a tenth at a tenth of the tolerance; dividing by
the rest makes the change an estimate of the whole error. Both solves of an end are tight, on every second of the m.

Ends. The discrete probability is *defined* by the protocol's ends: draw from the prior at t_max, follow the flow to
t_min, take the bin. For that model neither end is an error. The error of an end is the distance to the model without
ends, the limit lambda -> +-infinity, which cannot be computed with a network that was not trained beyond the ends. So
they are moved inwards, where the network was trained. If the distance scales as the a-th power of the noise (or signal)
at the end, a move by a factor of 2 changes the figure by 2^a - 1 times the distance: by all of it or more for a >= 1,
and by 3 times it for a = 2, the limit for a density that is smooth on the scale of the noise. More compute reduces
neither end.

If the data are narrower than the noise variance v at t_min, a halving changes the figure by up to a bit, and many
halvings remain. For a density (of continuous data) the end is then moved a second time. For a Gaussian with standard
deviation c in a fraction p of the dimensions the changes would be p g(c^2 / v) and p g(c^2 / 4 v),

    g(r) = 1/2 log2((r + 4) / (r + 1)) - (1 / (r + 1) - 1 / (r + 4)) r / (2 ln 2),

whose ratio, plus one standard error, gives c and then p; for c^2 < v the entry is p / 2 log2(1 + v / c^2), the whole
remaining change for data at their mean. From c^2 = v / 200 on the ratio is 1 within its noise, as that of data on
points is, whose remaining change has no bound: the entry is nan, unknown, and no target is met. A figure of discrete
data is a bound on the probability for the path as it ends, and its entry is the effect of one halving of the noise, up
to a bit.

A bound (ELBO) accounts for the ends by its prior and decoder terms: nothing is truncated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError, UserError
from ..numerics.random import fixed_order
from ..samplers.ode.probability_flow import ADAPTIVE, FIXED
from .estimate import DATA_END, NOISE_END, SOLVER, TEST_SET, Estimate, mean_error
from .probability_flow import ESTIMATOR

# Measure some images again: (their indices, the options that change) -> their estimate.
Measure = Callable[[Tensor, Mapping[str, Any]], Estimate]

TIGHTER = 10.0
# Inwards by a factor of two in noise or signal, as a step in log-SNR.
_INWARDS = 2.0 * math.log(2.0)
# From this change (bits/dim) on, data may be narrower than the noise at t_min; and the smallest c^2 / v that two
# changes tell from 0, whatever the other dimensions are: their own changes lower the ratio by up to 1e-3 (v = 1e-4).
_NOTICED, _NARROWEST = 0.01, 5e-3
# One image in 54 for each cause; all causes cost at most about a fifth of the measurement of many images.
_ONE_IN, _FEWEST, _MOST = 54, 4, 32


def subsample_size(n: int) -> int:
    """The number of images of n that are measured again: one in 54, but at least 4 and at most 32."""
    return min(n, max(_FEWEST, min(_MOST, n // _ONE_IN)))


def subsample(indices: Tensor, count: int | None = None) -> Tensor:
    """`count` of `indices`, by default `subsample_size`, the first in the fixed order."""
    return indices[fixed_order(indices)[: subsample_size(len(indices)) if count is None else count]]


def complete(estimate: Estimate, measure: Measure, count: int | None = None) -> Estimate:
    """An estimate with every applicable cause of error in its budget (the module docstring has the formulas).

    Args:
        estimate: The figure.
        measure: Measures some of its images again, given their indices, with some options changed.
        count: The number of images measured again for each cause; by default one in 54, 4 to 32 of them.

    Returns:
        The same values. A cause is nan if it cannot be measured: a solve that fails at the tighter tolerance, data that
        are far narrower than the noise at the end of the path (the data end).
    """
    assert estimate.indices is not None
    rows = subsample(estimate.indices, count)
    if estimate.protocol.get("estimator") == ESTIMATOR:
        for cause, error in _of_noise(estimate, measure, rows).items():
            estimate = estimate.with_error(cause, error)
        for cause, error in _systematic(estimate, measure, rows).items():
            estimate = estimate.with_error(cause, error)
        return estimate
    for cause, error in estimate.error_budget.items():
        if math.isnan(error) and cause != TEST_SET:
            estimate = estimate.with_error(cause, _between_seeds(estimate, measure, rows))
    return estimate


def measurements(estimate: Estimate) -> int:
    """How often `complete` measures again; of data that are narrower than the noise at their end once more."""
    if estimate.protocol.get("estimator") == ESTIMATOR:
        return 3 + (1 in _probes_and_draws(estimate))
    return sum(math.isnan(error) for cause, error in estimate.error_budget.items() if cause != TEST_SET)


def _probes_and_draws(estimate: Estimate) -> tuple[int, int]:
    """The numbers of both, 0 where there are none."""
    protocol = estimate.protocol
    return 0 if protocol["trace"] == "exact" else int(str(protocol["probes"])), int(str(protocol.get("draws", 0)))


def _systematic(estimate: Estimate, measure: Measure, rows: Tensor) -> dict[str, float]:
    """The entries of the solver and of both ends."""
    protocol = estimate.protocol
    low, high = _numbers(protocol["log_snr"])
    method = str(protocol["method"])
    if method in ADAPTIVE:
        tighter, left = {"tolerance": float(str(protocol["tolerance"])) / TIGHTER}, 1.0 / TIGHTER
    else:
        tighter, left = {"steps": 2 * int(str(protocol["steps"]))}, 2.0 ** -FIXED[method]
    try:
        tight = measure(rows, tighter)
        data_end = measure(rows[::2], {**tighter, "log_snr_max": high - _INWARDS})
        of_data_end = _bias(tight, data_end)
        if estimate.levels is None and of_data_end > _NOTICED:
            further = measure(rows[::2], {**tighter, "log_snr_max": high - 2.0 * _INWARDS})
            of_narrow = _of_narrow_data(tight, data_end, further)
            of_data_end = of_narrow if math.isnan(of_narrow) else max(of_data_end, of_narrow)
        noise_end = measure(rows[::2], {**tighter, "log_snr_min": low + _INWARDS})
    except SolverError:
        return dict.fromkeys((SOLVER, DATA_END, NOISE_END), math.nan)
    return {
        SOLVER: _bias(estimate, tight) / (1.0 - left),
        DATA_END: of_data_end,
        NOISE_END: _bias(tight, noise_end),
    }


def _of_narrow_data(at_end: Estimate, inwards: Estimate, further: Estimate) -> float:
    """The possible error of the data end in bits/dim if the data are narrower than its noise; 0 if they are not.

    It is nan of data so narrow that the changes do not tell them from points.
    """
    changes = inwards.bits_per_dim - _at(at_end, inwards), further.bits_per_dim - inwards.bits_per_dim
    first, second = (float(change.mean()) for change in changes)
    if min(first, second) <= 0.0:
        return 0.0
    spread = changes[0] - first / second * changes[1]
    sem = float(spread.std()) / math.sqrt(len(spread)) / second if len(spread) > 1 else 0.0
    ratio = torch.logspace(math.log10(_NARROWEST), 0.0, 400, dtype=torch.float64)
    unlike = _change(ratio) / _change(0.25 * ratio)  # falls from 1 to 0.57
    if first / second + sem < float(unlike[-1]):
        return 0.0
    if first / second + sem > float(unlike[0]):
        return math.nan
    r = ratio[(unlike - first / second - sem).abs().argmin()]
    return first / float(_change(r)) * 0.5 * math.log2(1.0 + 1.0 / float(r))


def _change(r: Tensor) -> Tensor:
    """g of the module docstring."""
    near, far = 1.0 / (r + 1.0), 1.0 / (r + 4.0)
    return 0.5 * torch.log2(near / far) - (near - far) * r / (2.0 * math.log(2.0))


def _numbers(pair: object) -> tuple[float, float]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise UserError(f"protocol: found log_snr = {pair}; needs the two ends of the solve")
    return float(pair[0]), float(pair[1])


def _bias(estimate: Estimate, again: Estimate) -> float:
    """sqrt(mean(d)^2 + s_d^2 / m), d the change in bits/dim of each image of `again`."""
    change = again.bits_per_dim - _at(estimate, again)
    sem = float(change.std()) / math.sqrt(len(change)) if len(change) > 1 else 0.0
    return math.hypot(float(change.mean()), sem)


def _at(estimate: Estimate, other: Estimate) -> Tensor:
    """The bits/dim of `estimate` for the images of `other`."""
    assert estimate.indices is not None
    assert other.indices is not None
    order = estimate.indices.argsort()
    return estimate.bits_per_dim[order[torch.searchsorted(estimate.indices[order], other.indices)]]


def _of_noise(estimate: Estimate, measure: Measure, rows: Tensor) -> dict[str, float]:
    """The entries of probes and draws; those of a single one from a few images with two of each."""
    protocol, budget, n = estimate.protocol, estimate.error_budget, len(estimate)
    probes, draws = _probes_and_draws(estimate)
    if probes != 1 and draws != 1:
        return {}
    two = {"probes": max(2, probes)} if probes else {}
    two |= {"draws": max(2, draws)} if draws else {}
    if draws == 1 and protocol["importance_weighted"]:
        two["importance_weighted"] = False  # one weighted draw is a plain one; so is its spread
    again = measure(rows, two)
    # the subsample had more of each: its errors are scaled to the numbers of the figure
    fewer = len(again) / n * (two.get("draws", 1) / max(1, draws))
    found = {}
    if probes:
        found["probes"] = again.error_budget["probes"] * math.sqrt(fewer * two["probes"] / probes)
        if probes > 1:
            found["probes"] = budget["probes"]
    if draws == 1:
        found["draws"] = again.error_budget["draws"] * math.sqrt(fewer)
    elif draws > 1:  # the spread over draws is known, and includes that of the single probe
        found["draws"] = math.sqrt(max(0.0, mean_error(estimate.std_error, estimate.dims) ** 2 - found["probes"] ** 2))
    return found


def _between_seeds(estimate: Estimate, measure: Measure, rows: Tensor) -> float:
    """The standard error of the mean from the differences between two seeds, each of twice the variance."""
    again = measure(rows, {"seed": int(str(estimate.protocol["seed"])) + 1})
    change = again.bits_per_dim - _at(estimate, again)
    return math.sqrt(0.5 * float(change.square().mean()) / len(estimate))
