"""Likelihoods of latent-variable models, p(x) = E_{z ~ N(0, I)} p(x | z), from samples of a proposal q(z | x).

Importance-weighted bound (Burda et al. 2016, arXiv 1509.00519, eq. 8), K samples with weights w = p(x|z) p(z)/q(z|x):

    log p(x) >= E log 1/K sum_i w_i = E [log sum_i w_i - log K],        increasing in K, log p(x) in the limit.

Its bias is -Var(w) / (2 K E[w]^2) to first order and its standard error sqrt(Var(w) / K) / E[w]: both are small where
the effective sample size (sum w)^2 / sum w^2 (Kong 1992) is large. The reported error is that of `importance_weights`.
K = 1 in expectation is the evidence lower bound, whose Kullback-Leibler term is in closed form:

    ELBO = E_q log p(x | z) - KL(q(z | x) || N(0, I)),        log p(x) - ELBO = KL(q(z | x) || p(z | x)).

Only the log-weights of the samples are stored, 8 bytes each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import check_at_least_one
from ..likelihood.batching import Batch, Batches, Values, as_function
from ..likelihood.estimate import Estimate
from ..likelihood.importance_weights import LogMeanExp
from ..numerics import random
from .latent_variable import LatentVariableModel, lower_bound

# Samples per image in one call of the decoder and one draw of noise: sample i is row i % 50 of draw i // 50, for any
# number of samples.
SAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class ImportanceWeighted:
    """The importance-weighted bound.

    Args:
        samples: The number K of samples of the model's proposal, and of decoder evaluations per image; more samples
            begin with the same ones.
    """

    samples: int = 5000

    def __post_init__(self):
        check_at_least_one(samples=self.samples)

    def __call__(self, model: LatentVariableModel, x: Tensor, batches: Batches) -> Estimate:
        """Measure data of shape (B, *dims): level indices, or real values if the model's `levels` is None.

        Returns:
            Kind `lower bound`, with the error as an estimate of log p(x) (`importance_weights`); terms in nats: `elbo`,
            the mean of log w; and the weights' diagnostics (`LogMeanExp.diagnostics`).

        Raises:
            UserError: For no image, or a wrong number of indices.
        """

        def evaluate(batch: Batch) -> Values:
            mean, std = model.proposal(batch.x)
            total = LogMeanExp()
            for eps in _blocks(batches.seed, batch.keys, self.samples, mean):
                z = mean[:, None] + std[:, None] * eps
                # log p(z) - log q(z | x): the constants cancel
                log_ratio = std.double().log().sum(1, keepdim=True) + 0.5 * (
                    eps.double().square() - z.double().square()
                ).sum(2)
                total.add(_log_prob_given(model, batch.x, z).double() + log_ratio)
            return total.value, total.std_error, {"elbo": total.mean_log, **total.diagnostics}

        protocol: dict[str, object] = {"estimator": "importance-weighted bound", "samples": self.samples}
        return lower_bound(model, x, batches, evaluate, protocol, self.samples, SAMPLES_AT_ONCE)


@dataclass(frozen=True)
class EvidenceLowerBound:
    """The evidence lower bound with the model's proposal: log p(x | z) from samples, the KL term in closed form.

    Args:
        samples: As `ImportanceWeighted`.
    """

    samples: int = 100

    def __post_init__(self):
        check_at_least_one(samples=self.samples)

    def __call__(self, model: LatentVariableModel, x: Tensor, batches: Batches) -> Estimate:
        """As `ImportanceWeighted`.

        Returns:
            Kind `lower bound`; terms in nats, which add up to log_prob: `reconstruction` and `prior` (minus the KL).
        """

        def evaluate(batch: Batch) -> Values:
            mean, std = model.proposal(batch.x)
            values = [
                _log_prob_given(model, batch.x, mean[:, None] + std[:, None] * eps)
                for eps in _blocks(batches.seed, batch.keys, self.samples, mean)
            ]
            values = torch.cat(values, dim=1).cpu().double()
            prior = -kl_to_prior(mean.double(), std.double()).sum(1).cpu()
            terms = {"reconstruction": values.mean(1), "prior": prior}
            several = self.samples > 1
            error = values.std(1) / math.sqrt(self.samples) if several else torch.full_like(values[:, 0], math.nan)
            return terms["reconstruction"] + terms["prior"], error, terms

        protocol: dict[str, object] = {"estimator": "ELBO, latent variables", "samples": self.samples}
        return lower_bound(model, x, batches, evaluate, protocol, self.samples, SAMPLES_AT_ONCE)


importance_weighted = as_function("importance_weighted", ImportanceWeighted)
evidence_lower_bound = as_function("evidence_lower_bound", EvidenceLowerBound)


def kl_to_prior(mean: Float[Tensor, " b d"], std: Float[Tensor, " b d"]) -> Float[Tensor, " b d"]:
    """KL(N(mean, std^2) || N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std, for each dimension."""
    return 0.5 * (mean.square() + std.square() - 1.0) - std.log()


def _blocks(seed: int, rows: Tensor, samples: int, like: Tensor) -> Iterator[Tensor]:
    """Standard normals (B, S, d) of the latents, S = 50 except for the last, `samples` in all."""
    for block, first in enumerate(range(0, samples, SAMPLES_AT_ONCE)):
        shape = (SAMPLES_AT_ONCE, like.shape[1])
        eps = random.normal(seed, rows, block, shape, random.STREAM_EVALUATE, like.dtype, like.device)
        yield eps[:, : samples - first]


def _log_prob_given(model: LatentVariableModel, x: Tensor, z: Tensor) -> Tensor:
    """log p(x | z) for several latents per image: x (B, *dims), z (B, S, d) -> (B, S)."""
    return model.log_prob_given(x.repeat_interleave(z.shape[1], 0), z.flatten(0, 1)).unflatten(0, z.shape[:2])
