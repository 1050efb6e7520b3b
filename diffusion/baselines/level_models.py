"""Strong classical models of discrete images with exact probabilities: no bound, no dequantisation.

mixture of categoricals   P(x) = sum_k w_k prod_i p_ki(x_i), by EM
forest                    P(x) = prod_i P(x_i | x_1 .. x_{i-1}), a forest of extremely randomised trees for each pixel
                          (Geurts, Ernst and Wehenkel 2006, Machine Learning 63)

Both are fitted on training images, with hyperparameters chosen on validation images. Both give every level of every
pixel a positive probability: each mixes in a share of the pixel's smoothed histogram (`IndependentPixels`).
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import UserError
from ..likelihood.estimate import Estimate
from .classical import IndependentPixels

Progress = Callable[[int, int], None]
_EM_TOLERANCE = 1.5e-6  # nats per pixel


@dataclass(frozen=True, eq=False)
class CategoricalMixture:
    """A mixture of products of categorical distributions, one per pixel.

    Args:
        log_weights: log w_k, shape (K,).
        log_probs: log p_ki(level), shape (D, L, K).
        shape: The shape of one image.
        choice: The selected `components` and `pseudocounts`, and the validation bits/dim of each candidate.
    """

    log_weights: Float[Tensor, " k"]
    log_probs: Float[Tensor, " d l k"]
    shape: tuple[int, ...]
    choice: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        train: UInt8[Tensor, " n *dims"],
        validation: UInt8[Tensor, " m *dims"],
        levels: int,
        components: Sequence[int] = (10, 20, 40, 80),
        pseudocounts: Sequence[float] = (3.0, 10.0, 30.0, 100.0),
        iterations: int = 100,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> CategoricalMixture:
        """Fit every combination by EM, and return the best one on the validation images.

        Args:
            train, validation: Level indices.
            levels: The number of levels L.
            components: The candidate numbers K (those beyond the number of training images are skipped).
            pseudocounts: Counts of the pixel's histogram added to those of a component: a Dirichlet prior.
            iterations: The maximum number of EM steps; they stop when the mean log-probability increases by less than
                1.5e-6 nats per pixel.
            seed: The seed of the images that initialise the components.
            progress: Called with (combinations done, total).

        Raises:
            UserError: For a number that is not positive, or no valid number of components.
        """
        tried = [count for count in components if count <= len(train)]
        if not tried or min(tried) < 1 or not min(pseudocounts) > 0:
            raise UserError(
                f"components, pseudocounts: found {list(components)} and {list(pseudocounts)} for {len(train)} "
                "training images; positive ones are accepted, components no more than images"
            )
        prior = IndependentPixels.fit(train, levels).log_probs.exp()
        counts = _Counts.of(train.flatten(1).long(), prior.argmax(1), levels)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        best, scores = None, {}
        combinations = list(itertools.product(tried, pseudocounts))
        for done, (count, pseudocount) in enumerate(combinations, start=1):
            found = _expectation_maximisation(counts, order[:count], prior, pseudocount, iterations)
            model = cls(*found, tuple(train.shape[1:]), {"components": count, "pseudocounts": pseudocount})
            score = model.log_likelihood(validation).mean().mean
            scores[f"{count} components, {pseudocount:g} pseudocounts"] = score
            if best is None or score < best[0]:
                best = (score, model)
            if progress is not None:
                progress(done, len(combinations))
        assert best is not None
        model = best[1]
        choice = {**model.choice, "seed": seed, "validation_bits_per_dim": scores}
        return cls(model.log_weights, model.log_probs, model.shape, choice)

    def log_likelihood(self, images: UInt8[Tensor, " b *dims"]) -> Estimate:
        """The exact log-probability of images of the shape that was fitted."""
        start = time.perf_counter()
        pixels = _pixels(images, self.shape)
        place = torch.arange(pixels.shape[1])
        joint = [self.log_probs[place, chunk].sum(1) + self.log_weights for chunk in pixels.split(256)]
        log_prob = torch.cat(joint).logsumexp(1)
        return _exact(log_prob, self.log_probs.shape[:2], "mixture of categoricals", self.choice, start)


@dataclass(frozen=True, eq=False)
class _Counts:
    """The levels of images, one-hot over (pixel, level), without the `common` level of each pixel: it is what is left.

    Most pixels of most images have their pixel's common level (81 % of MNIST's), so that products with the rest are
    cheap.

    Args:
        rest: The other levels, shape (N, D L), a sparse matrix of scipy.
        transposed: The same, (D L, N).
        common: One level a pixel, shape (D,).
        levels: L.
    """

    rest: Any
    transposed: Any
    common: Int[Tensor, " d"]
    levels: int

    @classmethod
    def of(cls, pixels: Int[Tensor, " n d"], common: Int[Tensor, " d"], levels: int) -> _Counts:
        from scipy.sparse import csr_matrix

        rows, places = (pixels != common).nonzero(as_tuple=True)
        columns = places * levels + pixels[rows, places]
        ones = torch.ones(len(rows), dtype=torch.float64)
        size = (len(pixels), pixels.shape[1] * levels)
        rest = csr_matrix((ones.numpy(), (rows.numpy(), columns.numpy())), size)
        return cls(rest, rest.T.tocsr(), common, levels)

    def sums(self, of: Float[Tensor, " d l k"]) -> Float[Tensor, " n k"]:
        """For each image the sum over its pixels of the entry of their levels."""
        usual = of[torch.arange(len(of)), self.common]  # (D, K)
        return usual.sum(0) + torch.from_numpy(self.rest @ (of - usual[:, None]).flatten(0, 1).numpy())

    def totals(self, weights: Float[Tensor, " n k"]) -> Float[Tensor, " d l k"]:
        """The weights of the images, summed by pixel and level."""
        found = torch.from_numpy(self.transposed @ weights.numpy()).view(-1, self.levels, weights.shape[1])
        found[torch.arange(len(found)), self.common] = weights.sum(0) - found.sum(1)
        return found


def _expectation_maximisation(
    counts: _Counts, centres: Int[Tensor, " k"], prior: Float[Tensor, " d l"], pseudocount: float, iterations: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, " d l k"]]:
    """log w and log p after EM; `centres` are the rows of the images that initialise the components."""
    n, k = counts.rest.shape[0], len(centres)
    one = torch.zeros(n, k, dtype=torch.float64)
    one[centres, torch.arange(k)] = 1.0
    # the initial responsibilities: a softmax of the number of pixels that agree with a centre
    responsible = (counts.sums(counts.totals(one)) / 3.0).softmax(1)
    former = -math.inf
    log_weights, log_probs = torch.empty(0), torch.empty(0)
    for _ in range(iterations):
        mass = responsible.sum(0)
        probs = counts.totals(responsible) + pseudocount * prior[:, :, None]
        log_probs = (probs / (mass + pseudocount)).log()
        log_weights = ((mass + 1.0) / (n + k)).log()
        joint = counts.sums(log_probs) + log_weights
        total = joint.logsumexp(1, keepdim=True)
        responsible = (joint - total).exp()
        mean = float(total.mean())
        if mean - former < _EM_TOLERANCE * len(prior):
            break
        former = mean
    return log_weights, log_probs


@dataclass(frozen=True, eq=False)
class AutoregressiveForest:
    """One forest per pixel, which predicts its level given the preceding pixels in raster order.

        P(level | before) = (1 - a) sum_l forest(l | before) K(level | l) + a histogram(level)

    K spreads a vote over the neighbouring levels (a Gaussian of `spread` levels, normalised; 0: none), so the sum over
    levels is one for any votes.

    Args:
        forests: Of the pixels 1 .. D - 1; the first pixel only has its histogram.
        histogram: The smoothed histogram of each pixel.
        share: The share a of the histogram, in (0, 1].
        spread: In levels.
        choice: The selected values, with the validation bits/dim of the candidates.
    """

    forests: Sequence[Any] = field(repr=False)
    histogram: IndependentPixels
    share: float
    spread: float
    choice: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        train: UInt8[Tensor, " n *dims"],
        validation: UInt8[Tensor, " m *dims"],
        levels: int,
        trees: int = 100,
        leaves: Sequence[int] = (4, 8, 16),
        shares: Sequence[float] = (0.003, 0.01, 0.03, 0.1),
        spreads: Sequence[float] = (0.0, 0.3, 0.5, 0.7, 1.0),
        seed: int = 0,
        progress: Progress | None = None,
    ) -> AutoregressiveForest:
        """Fit; the leaf size is chosen with a fifth of the trees, share and spread with all of them.

        Args:
            train, validation: Level indices.
            levels: The number of levels L.
            trees: Trees per forest.
            leaves: Candidates for the minimum number of training images in a leaf.
            shares, spreads: The candidates.
            seed: The seed of the forests.
            progress: Called with (forests fitted, total).

        Raises:
            UserError: For a share outside (0, 1] (unseen levels would have zero probability).
        """
        if not all(0 < share <= 1 for share in shares) or not all(spread >= 0 for spread in spreads):
            raise UserError(
                f"shares, spreads: found {list(shares)} and {list(spreads)}; shares are in (0, 1], spreads at least 0"
            )
        histogram = IndependentPixels.fit(train, levels)
        dims = len(histogram.log_probs)
        few, total = max(1, trees // 5), (len(leaves) * (len(leaves) > 1) + 1) * (dims - 1)
        done = itertools.count(1)

        def tell() -> None:
            if progress is not None:
                progress(next(done), total)

        def best_of(forests: Sequence[Any]) -> tuple[float, float, float]:
            votes = _votes(forests, validation, levels)
            pixels = _pixels(validation, histogram.shape)
            options = itertools.product(shares, spreads)
            return min((_score(_log_probs(votes, histogram, *o), pixels), *o) for o in options)

        scores = {}
        if len(leaves) > 1:
            scores = {leaf: best_of(_forests(train, few, leaf, seed, tell))[0] for leaf in leaves}
        leaf = min(scores, key=scores.__getitem__) if scores else leaves[0]
        forests = _forests(train, trees, leaf, seed, tell)
        score, share, spread = best_of(forests)
        tried = {f"leaves of {leaf}, {few} trees": figure for leaf, figure in scores.items()}
        choice = {
            "trees": trees,
            "leaf": leaf,
            "share": share,
            "spread": spread,
            "seed": seed,
            "validation_bits_per_dim": {**tried, "chosen": score},
        }
        return cls(forests, histogram, share, spread, choice)

    def log_likelihood(self, images: UInt8[Tensor, " b *dims"]) -> Estimate:
        """The exact log-probability of images of the shape that was fitted."""
        start = time.perf_counter()
        pixels, size = _pixels(images, self.histogram.shape), self.histogram.log_probs.shape
        votes = _votes(self.forests, images, size[1])
        log_probs = _log_probs(votes, self.histogram, self.share, self.spread)
        log_prob = log_probs.gather(2, pixels[:, :, None]).sum((1, 2))
        return _exact(log_prob, size, "autoregressive forest", self.choice, start)


def _forests(train: Tensor, trees: int, leaf: int, seed: int, tell: Callable[[], None]) -> list[Any]:
    """A forest for each pixel except the first, on the preceding pixels."""
    from sklearn.ensemble import ExtraTreesClassifier

    options: dict[str, Any] = {
        "min_samples_leaf": leaf,
        "max_features": 0.5,  # half of the preceding pixels are considered for a split
        "n_jobs": torch.get_num_threads(),
    }
    pixels = train.flatten(1).numpy()
    made = []
    for i in range(1, pixels.shape[1]):
        forest = ExtraTreesClassifier(trees, **options, random_state=seed + i)
        with warnings.catch_warnings():
            # a pixel with many different levels is not a mistaken regression
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            forest.fit(pixels[:, :i], pixels[:, i])
        forest.n_jobs = 1  # votes are summed in a fixed order: bit-equal for any number of threads
        made.append(forest)
        tell()
    return made


def _votes(forests: Sequence[Any], images: Tensor, levels: int) -> Float[Tensor, " b d l"]:
    """The forests' votes for the levels of every pixel; zero for the first, which has no forest."""
    pixels = images.flatten(1).cpu().numpy()
    votes = torch.zeros(*pixels.shape, levels, dtype=torch.float64)
    for i, forest in enumerate(forests, start=1):
        votes[:, i, torch.from_numpy(forest.classes_).long()] = torch.from_numpy(forest.predict_proba(pixels[:, :i]))
    return votes


def _log_probs(
    votes: Float[Tensor, " b d l"], histogram: IndependentPixels, share: float, spread: float
) -> Float[Tensor, " b d l"]:
    """log P(level | the preceding pixels) of every level, from votes."""
    levels = torch.arange(votes.shape[2], dtype=torch.float64)
    if spread > 0:
        kernel = (-0.5 * ((levels[:, None] - levels) / spread) ** 2).softmax(1)
        votes = votes @ kernel
    probs = (1.0 - share) * votes + share * histogram.log_probs.exp()
    probs[:, 0] = histogram.log_probs[0].exp()
    return probs.log()


def _score(log_probs: Float[Tensor, " b d l"], pixels: Tensor) -> float:
    """Bits/dim."""
    return float(-log_probs.gather(2, pixels[:, :, None]).mean()) / math.log(2.0)


def _pixels(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Level indices as (B, D), int64.

    Raises:
        UserError: For images of a shape other than the fitted one.
    """
    if tuple(images.shape[1:]) != shape:
        raise UserError(f"images: found shape {tuple(images.shape[1:])}; fitted on {shape}")
    return images.flatten(1).long()


def _exact(log_prob: Tensor, size: Sequence[int], estimator: str, choice: Mapping[str, Any], start: float) -> Estimate:
    dims, levels = size
    return Estimate(
        log_prob=log_prob,
        dims=dims,
        levels=levels,
        std_error=torch.zeros_like(log_prob),
        kind="exact",
        protocol={"estimator": estimator, **choice},
        seconds=time.perf_counter() - start,
    )
