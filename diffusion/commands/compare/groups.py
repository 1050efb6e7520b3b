"""Groups of results that can be compared directly, each with the reason why it is separate.

Rows of one group share the kind of estimate, the law, the dequantisation, the condition and the bound: then the lower
value is the better model. Between groups it need not be. The flow, the reverse SDE and a chain of steps are unlike laws
of one network (`likelihood.law`). Two bounds may differ because one of them is looser, by a gap that is not known; the
importance-weighted bound of 5,000 samples lies below that of 50 under one and the same model (Burda et al. 2016, arXiv
1509.00519, theorem 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from ...likelihood import Estimate, Interval
from ...likelihood.law import in_words
from ..records import Evaluation
from .comparison import condition_of, is_classical, paired_difference

# What is said of images with levels, and what of rows of real numbers.
_OF_DENSITIES = {
    "bits/dim": "nats/dim", "Bits/dim": "Nats/dim", "the bits": "the nats", "grey levels": "rows",
    "images": "rows", "image": "row", "probability of": "density of",
}  # fmt: skip
APART = (
    "Within a group all values have the same kind, law, dequantisation, condition and bound, and the lower value is "
    "the better model. Values in different groups also differ by unknown gaps, so a lower one need not be better. The "
    "probability flow, the reverse SDE and a chain of steps define different laws for one network, equal only if it is "
    "the exact posterior mean: a bound for one law is not a bound for another."
)
_KINDS = {
    "exact": "The exact probability of {}, up to rounding and the tolerance of a solver",
    "unbiased": "An unbiased estimate of the bits/dim of {}",
    "lower bound": "An upper bound on the bits/dim of the grey levels",
    "surrogate": "Neither a bound nor an unbiased estimate of the bits/dim of {}: an indication only",
}
# Of estimators whose figures on average are below no other's: nothing but the dequantisation makes them bounds.
_DENSITIES = ("probability-flow ODE", "Gaussian mixture, full covariances")
# What a model or a run of the estimator decides, and no setting does.
_NO_SETTINGS = ("schedule", "times", "levels", "latent_dim", "observation", "scale", "curve_log_snr")


@dataclass(frozen=True)
class Group:
    """Figures that may be compared.

    Args:
        letter: Its short name.
        kind: The kind of the estimates.
        law: The law whose likelihood it is.
        dequantization: How levels are dequantised; `none` if they are not.
        bound: What makes the values bounds, apart from dequantisation; empty if nothing does.
        rows: The evaluations, the best first.
        differences: Of each to the best, paired; None for the best itself.
    """

    letter: str
    kind: str
    law: str
    dequantization: str
    bound: str
    rows: Sequence[Evaluation]
    differences: Sequence[Interval | None]

    @property
    def is_of_densities(self) -> bool:
        """Whether its figures are those of densities, in nats/dim."""
        return self.rows[0].estimate.levels is None

    @property
    def title(self) -> str:
        """The kind as bits/dim show it, the bound, the law, and the dequantisation."""
        bound = f" ({self.bound})" if self.bound else ""
        return f"{kind_text(self.kind)}{bound}; law: {self.law}; dequantisation: {self.dequantization}"

    @property
    def why(self) -> str:
        """What the values of the group mean, and why they are separate."""
        dequantized = self.dequantization.split(",")[0]
        images = "the grey levels themselves" if dequantized == "none" else f"images dequantised by {dequantized} noise"
        text = _KINDS[self.kind].format(images)
        if self.kind == "lower bound":
            gaps = [] if dequantized == "none" else [f"{dequantized} dequantisation (Jensen's inequality)"]
            gaps += [f"the {self.bound}"] if self.bound else []
            text += f", with an unknown gap due to {' and '.join(gaps)}" if gaps else ""
        text = of_densities(text) if self.is_of_densities else text
        parts = [f"{text}. The likelihood is of {in_words(self.law)}."]
        if "declared model" in self.dequantization:
            parts.append("The model is declared after training, for this measurement.")
        if unlike := unlike_settings(self.rows):
            parts.append(f"Settings differ within the group ({unlike}), which contributes to the differences.")
        return " ".join(parts)


def of_densities(text: str) -> str:
    """A text about images, about rows of real numbers: `nats/dim of rows`. Names with these words in them stay."""
    for word, other in _OF_DENSITIES.items():
        text = re.sub(rf"(?<![\w./-]){word}(?![\w/-]|\.\w)", other, text)
    return text


def kind_text(kind: str) -> str:
    """A kind of log-likelihood as a kind of bits/dim: a lower bound of the one is an upper bound of the other."""
    return "upper bound" if kind == "lower bound" else kind


def dequantization_of(estimate: Estimate) -> str:
    """The dequantisation of a figure in words, with whatever else sets its meaning apart."""
    protocol = estimate.protocol
    parts = [str(protocol.get("dequantization") or "none")]
    if protocol.get("importance_weighted"):
        parts.append(f"importance-weighted over {protocol.get('draws')} draws")
    if "declared model" in str(protocol.get("model", "")):
        parts.append("declared model")
    if protocol.get("condition"):
        parts.append(f"given {protocol['condition']}")
    return ", ".join(parts)


def bound_of(estimate: Estimate) -> str:
    """What makes a value a bound, apart from dequantisation, with every setting that changes its expectation."""
    protocol = estimate.protocol
    estimator = str(protocol.get("estimator", ""))
    if estimate.kind != "lower bound" or estimator in _DENSITIES:
        return estimator if estimate.kind == "surrogate" else ""
    times = protocol.get("times")
    if estimator == "ELBO, discrete time" and isinstance(times, Sequence):
        return f"ELBO of {len(times) - 1} steps, variance {protocol.get('variance')}"
    if estimator == "importance-weighted bound":
        return f"importance-weighted bound of {protocol.get('samples')} samples"
    if estimator == "annealed importance sampling":
        return f"annealed importance sampling, {protocol.get('steps')} steps, {protocol.get('chains')} chains"
    return {"PNG": "code length"}.get(estimator, estimator.split(",")[0])


def unlike_settings(rows: Sequence[Evaluation]) -> str:
    """The settings of one estimator that are not the same in all its rows: `tolerance 0.01 or 0.001`."""
    by_estimator: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        protocol = row.estimate.protocol
        by_estimator.setdefault(str(protocol.get("estimator")), []).append(protocol)
    found = []
    for protocols in by_estimator.values():
        for key in dict.fromkeys(key for protocol in protocols for key in protocol):
            values = list(dict.fromkeys(str(protocol.get(key)) for protocol in protocols))
            if len(values) > 1 and key not in _NO_SETTINGS:
                found.append(f"{key} {' or '.join(values)}")
    return "; ".join(found)


def group(evaluations: Sequence[Evaluation]) -> list[Group]:
    """Figures of the same images in groups of one kind, law, dequantisation, condition and bound, the best row first.

    The group of the best trained model comes first, groups without a trained model last.
    """
    found: dict[tuple[tuple[str, str, str, str], str], list[Evaluation]] = {}
    for evaluation in evaluations:
        estimate = evaluation.estimate
        key = (estimate.kind, estimate.law, dequantization_of(estimate), bound_of(estimate))
        found.setdefault((key, condition_of(evaluation)), []).append(evaluation)
    groups = []
    titles = [key for key, _ in found]
    ranked = sorted(found.items(), key=lambda item: min(map(_rank, item[1])))
    for i, ((key, condition), rows) in enumerate(ranked):
        rows = sorted(rows, key=_figure)
        best = rows[0].estimate
        differences = [None, *(paired_difference(row.estimate, best) for row in rows[1:])]
        letter = ascii_uppercase[i % 26] + (str(i // 26) if i >= 26 else "")
        kind, law, dequantization, bound = key
        if titles.count(key) > 1 and condition:  # the same words, of other values
            dequantization += f" (SHA-256 {condition[:8]})"
        groups.append(Group(letter, kind, law, dequantization, bound, rows, differences))
    return groups


def leader(group: Group) -> Evaluation:
    """The best trained model of a group; the best row if none is trained."""
    return min(group.rows, key=_rank)


def between(groups: Sequence[Group]) -> list[tuple[Evaluation, Evaluation, Interval]]:
    """The leader of each further group against that of the first, paired: (row, best, row - best)."""
    best, *rows = [leader(group) for group in groups]
    return [(row, best, paired_difference(row.estimate, best.estimate)) for row in rows]


def _rank(evaluation: Evaluation) -> tuple[bool, float]:
    return is_classical(evaluation), _figure(evaluation)


def _figure(evaluation: Evaluation) -> float:
    mean = evaluation.estimate.mean().mean
    return mean if math.isfinite(mean) else math.inf
