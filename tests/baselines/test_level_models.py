"""Exact classical models: their probabilities sum to one, a seed is a figure, and a mixture finds its truth."""

import math

import pytest
import torch

from diffusion.baselines.classical import IndependentPixels
from diffusion.baselines.level_models import AutoregressiveForest, CategoricalMixture
from diffusion.data import load_images
from diffusion.errors import UserError

LEVELS = 3


def images(n, seed, shape=(1, 2, 2)):
    """Images of one of two prototypes, a fifth of their pixels drawn anew; the last pixel is the first one's copy."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.tensor([[0, 1, 2, 0], [2, 2, 0, 2]])
    x = prototypes[torch.randint(2, (n,), generator=generator)]
    x = torch.where(torch.rand(n, 4, generator=generator) < 0.2, torch.randint(LEVELS, (n, 4), generator=generator), x)
    x[:, 3] = x[:, 0]
    return x.view(n, *shape).to(torch.uint8)


def forest(train, validation, levels=LEVELS, **options):
    return AutoregressiveForest.fit(train, validation, levels, **{"trees": 10, "leaves": (2, 5), **options})


MODELS = {"mixture": CategoricalMixture.fit, "forest": forest}


@pytest.fixture(scope="module")
def everything():
    """All images of four pixels of three levels."""
    return torch.cartesian_prod(*[torch.arange(LEVELS)] * 4).view(-1, 1, 2, 2).to(torch.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_the_probabilities_of_all_images_sum_to_one(name, everything):
    estimate = MODELS[name](images(120, 0), images(40, 1), LEVELS).log_likelihood(everything)
    assert estimate.kind == "exact"
    assert float(estimate.log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool(torch.isfinite(estimate.log_prob).all()), "every image has some probability"
    assert (estimate.dims, estimate.levels) == (4, LEVELS)
    assert not estimate.std_error.any()


@pytest.mark.parametrize("name", MODELS)
def test_levels_that_were_never_seen_have_probability(name, everything):
    """Of one image over and over, and of one more level than any image has."""
    train = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    model = MODELS[name](train, train[:5], LEVELS, **({"components": (1, 2)} if name == "mixture" else {}))
    log_prob = model.log_likelihood(everything).log_prob
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool(torch.isfinite(log_prob).all())
    assert int(log_prob.argmax()) == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_is_a_figure_whatever_the_number_of_threads(name):
    train, validation, test = images(120, 0), images(40, 1), images(50, 2)
    found = [MODELS[name](train, validation, LEVELS, seed=seed).log_likelihood(test) for seed in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = MODELS[name](train, validation, LEVELS, seed=0).log_likelihood(test)
    finally:
        torch.set_num_threads(threads)
    assert again.log_prob.tolist() == pytest.approx(found[0].log_prob.tolist(), abs=1e-12)
    assert again.protocol == found[0].protocol
    assert name == "mixture" or not torch.equal(found[0].log_prob, found[1].log_prob)


@pytest.mark.parametrize("name", MODELS)
def test_what_hangs_together_is_found_where_a_histogram_cannot(name):
    train, validation, test = images(600, 0), images(100, 1), images(400, 2)
    figure = MODELS[name](train, validation, LEVELS).log_likelihood(test).mean()
    # the truth: one of two prototypes, each of the three free pixels kept with probability 0.8 + 0.2 / 3
    keep, other = 0.8 + 0.2 / 3, 0.2 / 3
    prototypes, x = torch.tensor([[0, 1, 2], [2, 2, 0]]), test.flatten(1).long()
    agree = (x[:, None, :3] == prototypes).double()
    truth = 0.5 * (agree * keep + (1 - agree) * other).prod(2).sum(1)
    entropy = float(-truth.log2().mean()) / 4
    assert figure.mean < IndependentPixels.fit(train, LEVELS).log_likelihood(test).mean().mean - 0.3
    assert entropy - 0.02 < figure.mean < entropy + 0.08


def test_the_mixture_of_one_component_is_its_smoothed_histogram():
    train = images(50, 0)
    one = CategoricalMixture.fit(train, images(10, 1), LEVELS, components=(1,), pseudocounts=(2.0,))
    counts = torch.nn.functional.one_hot(train.flatten(1).long(), LEVELS).sum(0).double()
    expected = (counts + 2.0 * (counts + 1) / (50 + LEVELS)) / 52
    torch.testing.assert_close(one.log_probs[:, :, 0].exp(), expected)


def test_the_forest_of_the_digits_sums_to_one_level_by_level():
    """The probabilities of the last pixel's levels add up to that of the pixels before it."""
    data = load_images("digits")
    train, validation, test = (x[:, :, :1, 2:7] for x in (data.train, data.validation, data.test[:4]))
    model = forest(train, validation, data.levels)
    before = AutoregressiveForest(model.forests[:-1], IndependentPixels.fit(train[..., :-1], data.levels),
                                  model.share, model.spread)  # fmt: skip
    filled = test[:, None].repeat(1, data.levels, 1, 1, 1)
    filled[..., -1] = torch.arange(data.levels)[None, :, None, None]
    total = model.log_likelihood(filled.flatten(0, 1)).log_prob.view(4, -1).logsumexp(1)
    torch.testing.assert_close(total, before.log_likelihood(test[..., :-1]).log_prob)


def test_wrong_numbers_are_named():
    train = images(20, 0)
    with pytest.raises(UserError, match="shares, spreads"):
        forest(train, train, shares=(0.0,))
    with pytest.raises(UserError, match="components, pseudocounts"):
        CategoricalMixture.fit(train, train, LEVELS, components=(30,))
    with pytest.raises(UserError, match="fitted on"):
        CategoricalMixture.fit(train, train, LEVELS, components=(2,)).log_likelihood(train[..., :1])


@pytest.mark.parametrize("name", MODELS)
def test_progress_ends_with_all(name):
    told = []
    MODELS[name](images(60, 0), images(20, 1), LEVELS, progress=lambda done, count: told.append((done, count)))
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


def test_a_choice_is_that_of_the_validation_images():
    model = CategoricalMixture.fit(images(200, 0), images(60, 1), LEVELS, components=(1, 2, 4), pseudocounts=(1.0,))
    scores = model.choice["validation_bits_per_dim"]
    best = min(scores, key=scores.get)
    assert best.startswith(f"{model.choice['components']} components")
    assert scores[best] == pytest.approx(model.log_likelihood(images(60, 1)).mean().mean)
    assert math.isfinite(scores[best])
