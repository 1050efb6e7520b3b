"""A figure to a given error: compute is spent where the error budget predicts the largest gain.

The noise of one image's value is nested, in (bits/dim)^2: V_image between images, V_draw for each draw (a dequantised
point, a noise level, an importance sample), V_probe for each trace probe of a draw. With n images of d draws of p
probes, at a tolerance 10^k times tighter (or 2^k times the steps) than at first,

    total error(n, d, p, k) = sqrt((V_image + V_draw / d + V_probe / (d p)) / n) + solver(k) + ends
    cost(n, d, p, k)        = n d (1 + 2 p) 10^(k / order)        (2^k for steps; a vector-Jacobian product costs about
                                                                   two evaluations, an estimator without probes n d)

The target is for one standard error, with the biases added: a 95 % interval reaches about twice as far.

A pilot of 32 images gives the variances and the solver's error, the cheapest (n, d, p, k) predicted to meet the target
is measured, and its own budget, the better estimate, decides whether the target is met or another round is planned.
Nothing depends on the clock, so the same call takes the same path to the same figure.

If the total exceeds the target even with all images, the error from the choice of images cannot be reduced; the target
is then for the measurement error of these images, without V_image. Nor can the ends of the path (`error_budget`): if
they alone exceed the target, the rest is brought below it, and a note says so.

For importance-weighted bounds the random parts are the choice of images and the noise of the weights; the number of
draws also determines how tight the bound is, so the figure itself decreases in expectation with the compute spent.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..samplers.ode.probability_flow import ADAPTIVE, FIXED
from .error_budget import Measure, complete, subsample_size
from .estimate import DATA_END, NOISE_END, SOLVER, TEST_SET, Estimate
from .flow_density import Solve
from .probability_flow import ESTIMATOR

# The images of the pilot, and the minimum number measured again for causes that do not show in the estimate itself.
_PILOT, _AGAIN = 32, 16
_ROUNDS = 8
# Aim below the target, as the budget is itself an estimate.
_MARGIN = 0.93
# The allowed factors of draws or probes from one round to the next, in steps of a quarter of an octave.
_MORE = sorted({round(2 ** (step / 4)) for step in range(33)})
# The tightest tolerance that float64 states allow, including the budget's tenth of it.
_LEAST_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Plan:
    """A plan: n images, d draws each, p probes per draw, a tolerance 10^k times tighter (2^k times the steps)."""

    images: int
    draws: int
    probes: int
    tighter: int = 0


@dataclass(frozen=True)
class Spent:
    """A round, and the error after it.

    Args:
        images: The images measured.
        options: The estimator's options that the round set.
        evaluations: Network evaluations of the round and of its error budget, in all.
        seconds: Their time.
        measurement_error, total_error: As `Estimate`.
    """

    images: int
    options: Mapping[str, Any]
    evaluations: float
    seconds: float
    measurement_error: float
    total_error: float


@dataclass(frozen=True)
class Reached:
    """The figure and its cost.

    Args:
        estimate: The figure with its whole error budget.
        options: All options that it was measured with.
        rounds: What was spent, the pilot first.
        met: Whether the target was met.
        notes: The errors that could not be reduced, one sentence each.
    """

    estimate: Estimate
    options: Mapping[str, Any]
    rounds: list[Spent]
    met: bool
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the figure."""
        return {"met": self.met, "rounds": [asdict(spent) for spent in self.rounds], "notes": list(self.notes)}


def check_target(target: float) -> None:
    """Raise a `UserError` for an invalid target."""
    if not (math.isfinite(target) and target > 0):
        raise UserError(f"target_error: found {target}; must be above 0, in bits/dim, e.g. 0.005")


def remembering(measure: Measure) -> Measure:
    """A cached `measure`: it returns all images ever measured with the same options."""
    known: dict[str, Estimate] = {}

    def remembered(keys: Tensor, options: Mapping[str, Any]) -> Estimate:
        name = json.dumps(options, sort_keys=True, default=repr)
        done = known.get(name)
        left = keys if done is None or done.indices is None else keys[~torch.isin(keys, done.indices)]
        if len(left):
            new = measure(left, options)
            known[name] = new if done is None else Estimate.join([done, new])
        return known[name]

    return remembered


def reach(
    measure: Measure,
    keys: Int[Tensor, " n"],
    options: Mapping[str, Any],
    target: float,
) -> Reached:
    """Measure until the error is at most `target`, or nothing more can be done.

    Args:
        measure: Measures images, given their keys, with options; cached (see `remembering`).
        keys: The available images, in the order in which to use them (`random.fixed_order`).
        options: The estimator's options; numbers of draws and probes given here are lower limits.
        target: The error in bits/dim.

    Raises:
        UserError: For an invalid target, and whatever the estimator raises.
    """
    check_target(target)
    ledger: dict[str, Estimate] = {}

    def counted(some: Tensor, settings: Mapping[str, Any]) -> Estimate:
        found = measure(some, settings)
        ledger[json.dumps(settings, sort_keys=True, default=repr)] = found
        return found

    def measured(count: int, settings: Mapping[str, Any]) -> Estimate:
        before, again = _bill(ledger), max(_AGAIN, subsample_size(count))
        estimate = counted(keys[:count], settings)
        estimate = complete(estimate, lambda some, changes: counted(some, {**settings, **changes}), again)
        evaluations, seconds = (now - then for now, then in zip(_bill(ledger), before, strict=True))
        own = {key: value for key, value in settings.items() if key in _own(estimate)}
        errors = estimate.measurement_error, estimate.total_error
        rounds.append(Spent(len(estimate), own, evaluations, seconds, *errors))
        return estimate

    rounds: list[Spent] = []
    settings = dict(options)
    estimate = measured(min(len(keys), _PILOT), settings)
    first = estimate.protocol
    plan = Plan(len(estimate), *_numbers(estimate))
    for _ in range(_ROUNDS):
        if _error(estimate, len(keys), target) <= target or not math.isfinite(estimate.measurement_error):
            break
        following = next_plan(estimate, plan, len(keys), target)
        if following == plan:
            break
        plan = following
        settings = {**options, **_options(plan, first)}
        estimate = measured(plan.images, settings)
    met = _error(estimate, len(keys), target) <= target and _ends(estimate) < target
    return Reached(estimate, settings, rounds, met, _notes(estimate, len(keys), target, met))


def next_plan(estimate: Estimate, plan: Plan, available: int, target: float) -> Plan:
    """The cheapest plan predicted to meet the target, with no part smaller than now.

    Args:
        estimate: The result of `plan`, with its whole budget.
        plan: The current plan.
        available: The number of available images.
        target: The error in bits/dim.

    Returns:
        The plan; the current one if none is predicted to meet the target.
    """
    of_image, of_draw, of_probe = _variances(estimate, plan)
    aim = _MARGIN * target - (0.0 if _ends(estimate) >= target else _ends(estimate))
    of_population = _choice_can_be_met(estimate, available, target)
    solver, order = estimate.error_budget.get(SOLVER, 0.0), _order(estimate)
    knob = "tolerance" if "tolerance" in estimate.protocol else "steps"
    changes = _changes(estimate)
    best, least = plan, math.inf
    for more_draws, more_probes, tighter in itertools.product(
        _MORE if "draws" in changes else [1],
        _MORE if "probes" in changes else [1],
        range(_tighter(estimate) + 1) if "solver" in changes else [0],
    ):
        left = aim - solver * (10.0**-tighter if knob == "tolerance" else 2.0 ** (-order * tighter))
        if left <= 0:
            continue
        draws, probes = min(plan.draws * more_draws, _most_draws(estimate)), plan.probes * more_probes
        noise = of_draw / draws + of_probe / (draws * probes) + (of_image if of_population else 0.0)
        needed = max(plan.images, math.ceil(noise / left**2))
        if needed > available:
            continue
        images = needed if of_population else available
        slower = 10.0 ** (tighter / order) if knob == "tolerance" else 2.0**tighter
        cost = images * draws * (1.0 + 2.0 * probes if of_probe > 0 else 1.0) * slower
        if cost < least:
            best, least = Plan(images, draws, probes, plan.tighter + tighter), cost
    return best


def _bill(ledger: Mapping[str, Estimate]) -> tuple[float, float]:
    found = ledger.values()
    return float(sum(e.nfe * len(e) for e in found)), float(sum(e.seconds for e in found))


def _is_flow(estimate: Estimate) -> bool:
    return estimate.protocol.get("estimator") == ESTIMATOR


def _draws_option(estimate: Estimate) -> str | None:
    """The estimator's name for its draws."""
    names = ("draws",) if _is_flow(estimate) else ("evaluations", "samples", "chains")
    return next((name for name in names if name in estimate.protocol), None)


def _changes(estimate: Estimate) -> set[str]:
    """The parts of a plan that the estimator has."""
    found = set()
    if _draws_option(estimate) is not None and not estimate.protocol.get("importance_weighted"):
        found.add("draws")  # importance-weighted draws of the flow are part of the definition of the figure
    if _is_flow(estimate):
        found |= {"solver"} | ({"probes"} if estimate.protocol["trace"] == "hutchinson" else set())
    return found


def _own(estimate: Estimate) -> tuple[str, ...]:
    return (_draws_option(estimate) or "draws", "probes", "tolerance", "steps") if _is_flow(estimate) else (
        _draws_option(estimate) or "draws",
    )  # fmt: skip


def _most_draws(estimate: Estimate) -> int:
    times = estimate.protocol.get("times")  # for the discrete bound, no more than steps
    return len(times) - 1 if isinstance(times, list) else 2**31


def _whole(estimate: Estimate, option: str | None) -> int:
    return 1 if option is None else int(str(estimate.protocol.get(option, 1)))


def _numbers(estimate: Estimate) -> tuple[int, int]:
    """Draws and probes."""
    return _whole(estimate, _draws_option(estimate)), _whole(estimate, "probes")


def _options(plan: Plan, first: Mapping[str, object]) -> dict[str, Any]:
    """The options of a plan, for an estimator whose protocol was `first` in the pilot."""
    if first.get("estimator") != ESTIMATOR:
        return {name: plan.draws for name in ("evaluations", "samples", "chains") if name in first}
    found: dict[str, Any] = {"draws": plan.draws} if "draws" in first else {}
    found |= {"probes": plan.probes} if first["trace"] == "hutchinson" else {}
    if "tolerance" in first:
        return {**found, "tolerance": float(str(first["tolerance"])) / 10.0**plan.tighter}
    return {**found, "steps": int(str(first["steps"])) * 2**plan.tighter}


def _order(estimate: Estimate) -> int:
    return (ADAPTIVE | FIXED)[str(estimate.protocol["method"])] if _is_flow(estimate) else 1


def _tighter(estimate: Estimate) -> int:
    """The remaining powers of the tolerance or the steps for which the budget's tighter solve succeeds."""
    if "tolerance" in estimate.protocol:
        return max(0, math.floor(math.log10(float(str(estimate.protocol["tolerance"])) / _LEAST_TOLERANCE) + 1e-6))
    evaluations = 2 * _whole(estimate, "steps") * _order(estimate)
    return max(0, math.floor(math.log2(Solve.max_evaluations / evaluations)))


def _variances(estimate: Estimate, plan: Plan) -> tuple[float, float, float]:
    """V_image, V_draw, V_probe from the budget."""
    n, budget = len(estimate), estimate.error_budget
    of_probe = budget.get("probes", 0.0) ** 2 * n * plan.draws * plan.probes
    of_all = estimate.random_error**2 * n
    of_draw = max(0.0, of_all * plan.draws - of_probe / plan.probes)
    sem = budget[TEST_SET]
    return (max(0.0, sem**2 * n - of_all) if math.isfinite(sem) else 0.0), of_draw, of_probe


def _ends(estimate: Estimate) -> float:
    return sum(estimate.error_budget.get(end, 0.0) for end in (DATA_END, NOISE_END))


def _choice_of_images(estimate: Estimate, count: int) -> float:
    """The error of a mean over `count` images due to their choice alone."""
    sem, noise = estimate.error_budget[TEST_SET], estimate.random_error
    return math.sqrt(max(0.0, sem**2 - noise**2) * len(estimate) / count) if math.isfinite(sem) else math.inf


def _choice_can_be_met(estimate: Estimate, available: int, target: float) -> bool:
    ends = 0.0 if _ends(estimate) >= target else _ends(estimate)
    return _choice_of_images(estimate, available) + ends < _MARGIN * target


def _error(estimate: Estimate, available: int, target: float) -> float:
    """The error compared with the target: see the module docstring."""
    ends = _ends(estimate) if _ends(estimate) >= target else 0.0
    if estimate.total_error - ends <= target or _choice_can_be_met(estimate, available, target):
        return estimate.total_error - ends
    # that of these images counts only once all are used
    return estimate.measurement_error - ends if len(estimate) == available else math.inf


def _notes(estimate: Estimate, available: int, target: float, met: bool) -> list[str]:
    notes = []
    if len(estimate) == available and not estimate.total_error <= target:
        choice = _choice_of_images(estimate, available)
        notes.append(
            f"all {available} images are taken: their choice ({choice:.4f} bits/dim) cannot be made less by compute; "
            f"the target is for the measurement of these images ({estimate.measurement_error:.4f})"
        )
    if not math.isfinite(estimate.measurement_error):
        notes.append("a part of the error is not known, so that no compute can be said to meet the target")
    elif _ends(estimate) >= target:
        notes.append(
            f"the ends of the path make up {_ends(estimate):.4f} bits/dim, which no compute lowers; all the rest is "
            f"{estimate.measurement_error - _ends(estimate):.4f}"
        )
    elif not met:
        notes.append("the target is beyond what more draws, probes and a tighter solve are predicted to give")
    option = _draws_option(estimate)
    if option in ("samples", "chains") and "importance" in str(estimate.protocol.get("estimator")):
        notes.append(f"{option} = {_whole(estimate, option)} also decide how tight the bound is, not its noise alone")
    return notes
