"""Inputs as people have them: numbers, arrays, lists, words, and what was made in inference mode."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given_models import IMAGES, LABELLED, LEVELS, PLANE, SEEN, SHAPE, Embedded, Net, X, denoiser, draw, losses
from torch import nn

from diffusion import encode, log_density, log_likelihood, sample
from diffusion.baselines.entropy import knn_entropy
from diffusion.denoisers import NetworkDenoiser, exact
from diffusion.denoisers.exact import Labelled
from diffusion.denoisers.guidance import ClassifierFree, ClassifierGuided, Interval
from diffusion.denoisers.inverse_problems import (
    DPS,
    Downsample,
    Grey,
    Mask,
    MomentMatching,
    Observation,
    PseudoInverse,
)
from diffusion.errors import UserError
from diffusion.schedules import VP, Cosine


def test_a_denoiser_takes_numbers_arrays_and_lists():
    """A call of the denoiser itself: times as numbers, data of other libraries, labels of any whole type."""
    x, half = X[:2], torch.tensor(0.5)
    torch.testing.assert_close(PLANE(x.double().numpy(), 0.5), PLANE(x.double(), half))
    assert torch.equal(PLANE(x, 1), PLANE(x, torch.ones(2)))
    torch.testing.assert_close(PLANE.score(x, 0.5), PLANE.score(x, half))
    torch.testing.assert_close(PLANE.log_prob(x.half()), PLANE.log_prob(x.half().float()))
    inside = x.clone().requires_grad_()
    assert PLANE.log_prob(inside).requires_grad
    embedded = NetworkDenoiser(Embedded(), Cosine(), prediction="v", shape=(2,), num_classes=3)
    wanted = embedded(x, half, torch.tensor([1, 3]))
    kinds = (
        [1, 3],
        np.array([1, 3]),
        torch.tensor([[1], [3]]),
        torch.tensor([1.0, 3.0]),
        torch.tensor([1, 3]).to(torch.uint8),
    )
    for cond in kinds:
        torch.testing.assert_close(embedded(x, 0.5, cond), wanted)
    torch.testing.assert_close(embedded(x, 0.5, 1)[0], wanted[0])


def test_masks_of_pictures_and_of_other_libraries():
    kept = torch.arange(64).reshape(SHAPE) % 3 == 0
    x = torch.randn(2, *SHAPE)
    for mask in (kept.numpy(), kept.tolist(), kept.float(), kept.int(), kept.to(torch.uint8) * 255):
        assert torch.equal(Mask(mask)(x), Mask(kept)(x))
    assert torch.equal(Downsample(np.int64(2))(x), Downsample(2)(x))
    assert torch.equal(Grey(np.array([0.5]))(x), 0.5 * x)


def test_guidance_and_observations_take_trained_models_and_two_numbers():
    model = SimpleNamespace(denoiser=LABELLED)
    guided = ClassifierFree(model, np.float32(2.0), (0.1, 1.0))
    assert torch.equal(draw(guided, 2, label=1), draw(ClassifierFree(LABELLED, 2.0, Interval(0.1, 1.0)), 2, label=1))
    assert torch.equal(draw(DPS(SimpleNamespace(denoiser=PLANE), SEEN), 2), draw(DPS(PLANE, SEEN), 2))


def test_a_classifier_steers_samples_of_no_class_nowhere():
    """The label that stands for none, sample by sample: E[x | x_t] there, and the guided one elsewhere."""
    guided = ClassifierGuided(PLANE, lambda x, t: torch.stack([x.sum(1), -x.sum(1)], 1), 2)
    x, t = X[:2], torch.tensor(0.5)
    found = guided(x, t, torch.tensor([2, 0]))
    torch.testing.assert_close(found[0], PLANE(x, t)[0])
    torch.testing.assert_close(found[1], guided(x, t, torch.tensor([0, 0]))[1])
    assert float((found[1] - PLANE(x, t)[1]).abs().min()) > 1e-3


def test_a_denoiser_is_mapped_and_differentiated():
    """Samples one by one, with times and labels of their own, are those of a batch."""
    times, labels = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 1, 0])
    one = torch.func.vmap(lambda x, t: PLANE(x[None], t)[0])(X, times)
    torch.testing.assert_close(one, PLANE(X, times))
    law = exact.Gaussian([1.0, -1.0], 0.5, VP())
    both = Labelled([PLANE, law])
    one = torch.func.vmap(lambda x, t, y: both(x[None], t, y[None])[0])(X, times, labels)
    torch.testing.assert_close(one, both(X, times, labels))
    matrix = torch.func.jacrev(lambda x: PLANE(x[None], torch.tensor(0.5))[0])(X[0])
    assert torch.equal(matrix, matrix.diag().diag())


def test_the_loss_of_half_precision_is_computed_in_single():
    x = torch.full((4, 2), 0.3).half()
    assert torch.equal(losses(x=x).weighted, losses(x=x.float()).weighted)


def test_rows_are_numbered_by_any_library():
    of = partial(log_likelihood, LEVELS, IMAGES, "elbo", evaluations=2)
    wanted = of(indices=torch.tensor([3, 5])).log_prob
    for indices in ([3, 5], np.array([3, 5]), torch.tensor([3.0, 5.0])):
        assert torch.equal(of(indices=indices).log_prob, wanted)
    assert torch.equal(of(seed=None, dequantize=None).log_prob, of().log_prob)
    assert torch.equal(of(levels=np.int64(256)).log_prob, of().log_prob)


def test_arrays_lists_and_words_are_taken_as_meant():
    assert torch.equal(draw(PLANE, np.int64(3)), draw(PLANE, 3))
    for noise in (X.numpy(), X.tolist(), X.clone().requires_grad_(), X.T.contiguous().T, X.double()):
        torch.testing.assert_close(draw(PLANE, 3, noise=noise).float(), draw(PLANE, 3, noise=X))
    for word in ("float64", "torch.float64", "double", np.float64, torch.float64):
        assert draw(PLANE, 1, dtype=word).dtype == torch.float64
    times = np.linspace(1, 0, 5)
    assert torch.equal(sample(PLANE, 2, "ddim", grid=times), sample(PLANE, 2, "ddim", grid=torch.tensor(times)))
    torch.testing.assert_close(log_density(PLANE, X.numpy()).log_prob, log_density(PLANE, X).log_prob)
    measured = log_likelihood(LEVELS, IMAGES, tolerance=1e-2).log_prob
    for images in (IMAGES.long(), IMAGES.numpy(), IMAGES.to(torch.int16), IMAGES.tolist()):
        assert torch.equal(log_likelihood(LEVELS, images, tolerance=1e-2).log_prob, measured)
    torch.testing.assert_close(encode(PLANE, X.tolist(), "ddim", steps=4), encode(PLANE, X, "ddim", steps=4))
    z = np.random.default_rng(0).normal(size=(30, 2))
    assert float(knn_entropy(z)) == float(knn_entropy(torch.tensor(z)))
    assert float(knn_entropy(z.tolist())) == pytest.approx(float(knn_entropy(torch.tensor(z))), abs=1e-5)
    model = denoiser(Net(), num_classes=3)
    for label in (1.0, np.int64(1), [1, 1], np.array([1, 1]), torch.tensor([1, 1], dtype=torch.int32)):
        assert torch.equal(draw(model, 2, label=label), draw(model, 2, label=1))


def test_inference_mode_is_as_no_grad():
    y = torch.zeros(1, 1, 4, 4)
    images = exact.Gaussian(torch.zeros(SHAPE), 0.5, VP())
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier

        def forward(self, x, t):
            return self.inner(x)

    seen = Observation(Downsample(2), y)
    calls = [
        lambda: draw(images, 2),
        lambda: draw(MomentMatching(images, seen), 2),
        lambda: draw(DPS(images, seen), 2),
        lambda: PseudoInverse(images, seen)(torch.zeros(2, *SHAPE), torch.tensor([0.5, 0.6])),
        lambda: draw(ClassifierGuided(images, Classifier(), 2), 2, label=1),
        lambda: log_density(PLANE, X + 0.0).log_prob,
        lambda: log_likelihood(LEVELS, IMAGES + 0, tolerance=1e-2).log_prob,
        lambda: sample(PLANE, 3, noise=X * 1.0),
    ]
    for call in calls:
        with torch.inference_mode():
            inside = call()
        with torch.no_grad():
            torch.testing.assert_close(inside, call())
        assert not inside.is_inference()
    with torch.inference_mode():
        x = X + 0.0
    outside = log_density(PLANE, x).log_prob  # of what was made in inference mode
    torch.testing.assert_close(outside.float(), PLANE.log_prob(X), rtol=1e-3, atol=1e-3)


def test_images_with_one_number_and_estimators_without_a_name_are_refused_as_the_call_names_them():
    x = torch.zeros(3, 2)
    with pytest.raises(UserError, match=r"indices: found 4 more than once; each image has a number of its own"):
        log_density(PLANE, x, indices=[4, 5, 4], method="immse", evaluations=2)
    for method in (None, 3):
        with pytest.raises(UserError, match=rf"method: found {method}; must be the name of an estimator"):
            log_density(PLANE, x, method=method)
        with pytest.raises(UserError, match=rf"method: found {method}; must be the name of an estimator"):
            log_likelihood(PLANE, x.byte(), method=method)


def test_an_interval_of_one_value_is_unknown():
    assert str(log_density(PLANE, torch.zeros(1, 2), tolerance=0.1).mean()).endswith("(95 % interval unknown)")
