"""Which law a likelihood refers to: a denoiser defines several, equal only if it is the exact posterior mean.

    flow                the law to which the probability-flow ODE transports the prior          (ode)
    reverse SDE         that of dx = [f x - g^2 score] dt + g dw, which an ELBO bounds          (elbo, immse)
    chain of T steps    that of the ancestral sampler's T Gaussian steps, which an ELBO bounds  (elbo-discrete)
    declared            the density that a model is declared to have: VAE, EAE, classical models

All but the last end at t_min, and include the noise that remains there. Unless the network is the posterior mean, no
inequality holds between them: an ELBO bounds the likelihood of its own SDE, not that of the flow (Song et al. 2021,
arXiv 2101.09258; on the gap to the ODE: Lu et al. 2022, arXiv 2206.08265), and neither figure checks the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import UserError

FLOW, REVERSE_SDE, DECLARED = "flow", "reverse SDE", "declared"
_CHAIN = "chain of {} steps"
# By the name of the estimator in its protocol; any other measures a declared density.
_OF_ESTIMATORS = {
    "probability-flow ODE": FLOW,
    "ELBO, continuous time": REVERSE_SDE,
    "I-MMSE": REVERSE_SDE,
    "ELBO, discrete time": _CHAIN,
}
_WORDS = {
    FLOW: "the law that the probability-flow ODE draws from",
    REVERSE_SDE: "the law that the reverse SDE draws from",
    DECLARED: "the density that the model declares",
}


def law_of(protocol: Mapping[str, object]) -> str:
    """The law of a figure, from its protocol or, for a record without the field, implied by its estimator.

    Raises:
        UserError: For an unknown law.
    """
    said = protocol.get("law")
    if said is None:
        said = _OF_ESTIMATORS.get(str(protocol.get("estimator")), DECLARED)
        times = protocol.get("times")
        if said == _CHAIN and isinstance(times, Sequence):
            said = _CHAIN.format(len(times) - 1)
    if said not in _WORDS and not re.fullmatch(r"chain of \d+ steps", str(said)):
        accepted = ", ".join((*_WORDS, _CHAIN.format("T")))
        raise UserError(f"law: found '{str(said)[:60]}'; accepted: {accepted}")
    return str(said)


def in_words(law: str) -> str:
    """A description of the law, for use after 'of'."""
    return _WORDS.get(law, f"the {law} of the ancestral sampler")
