"""Guidance is a denoiser around a denoiser: the product of powers of two Gaussians, in closed form."""

import laws
import pytest
import torch
from torch import Tensor

from diffusion.denoisers import Denoiser, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.guidance import ClassifierFree
from diffusion.errors import UserError
from diffusion.schedules import VP


class Conditional(Denoiser):
    """One exact denoiser for each class; the last is that of "no label"."""

    def __init__(self, *by_class):
        super().__init__()
        self.by_class = by_class
        self.schedule, self.shape, self.num_classes = by_class[0].schedule, by_class[0].shape, len(by_class) - 1
        self.calls = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        assert cond is not None
        self.calls.append(len(x_t))
        answers = torch.stack([denoiser(x_t, t) for denoiser in self.by_class])
        return answers[cond, torch.arange(len(x_t))]


CLASS, FREE = (0.8, 0.3), (-0.1, 1.1)


def pair(schedule):
    other = exact.Gaussian(laws.f64([2.0]), laws.f64([0.5]), schedule)
    known, free = (exact.Gaussian(laws.f64([m]), laws.f64([s]), schedule) for m, s in (CLASS, FREE))
    return Conditional(other, known, free)


@pytest.mark.parametrize("schedule", laws.FOUR_SCHEDULES, ids=laws.name)
@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.3, 1.0, 1.7, 4.0])
def test_the_score_is_that_of_a_product_of_gaussians(schedule, weight):
    """p(x_t) (p(x_t | k) / p(x_t))^w is Gaussian: precisions and precision-weighted means add up with 1 - w and w."""
    t = laws.times(schedule, 9, -6, 6)
    x_t = laws.seeded(9, 1)
    alpha, sigma = (value[:, None] for value in schedule(t))
    precisions = [1 / ((alpha * std) ** 2 + sigma**2) for _, std in (FREE, CLASS)]
    parts = [(1 - weight) * precisions[0], weight * precisions[1]]
    precision = sum(parts)
    centre = sum(part * alpha * mean for part, (mean, _) in zip(parts, (FREE, CLASS), strict=True)) / precision
    guided = ClassifierFree(pair(schedule), weight)
    found = guided.score(x_t, t, torch.ones(9, dtype=torch.long))
    assert torch.allclose(found, -precision * (x_t - centre), rtol=1e-6, atol=1e-8)


def test_a_gaussian_classifier_multiplies_the_prior_by_its_likelihood():
    """p(y | x) = N(y; x, r^2): the class of an observation. Guided by w it is an observation of variance r^2 / w.

    At the data end, where x_t = alpha x to rounding, the guided score is that of the posterior under it.
    """
    schedule, r, y, w = VP(log_snr_max=20.0), 0.5, 1.2, 3.0
    prior = exact.Gaussian(laws.f64([0.0]), laws.f64([1.0]), schedule)

    def posterior(variance):
        gain = 1 / (1 + variance)
        return exact.Gaussian(laws.f64([gain * y]), laws.f64([(gain * variance) ** 0.5]), schedule)

    guided = ClassifierFree(Conditional(posterior(r**2), prior), w)
    t = laws.f64(schedule.t_min)
    x = laws.seeded(20, 1)
    cond = torch.zeros(20, dtype=torch.long)
    assert torch.allclose(guided.score(x, t, cond), posterior(r**2 / w).score(x, t), rtol=1e-5, atol=1e-5)


def test_weight_one_is_the_conditional_and_zero_the_free_model_to_the_bit():
    model = pair(VP())
    x_t, t, cond = laws.seeded(4, 1), laws.f64(0.4), torch.tensor([0, 1, 1, 0])
    assert torch.equal(ClassifierFree(model, 1.0)(x_t, t, cond), model(x_t, t, cond))
    assert torch.equal(ClassifierFree(model, 0.0)(x_t, t, cond), model(x_t, t, torch.full((4,), 2)))


def test_a_pair_is_one_call_of_twice_the_batch():
    model = pair(VP())
    ClassifierFree(model, 2.0)(laws.seeded(5, 1), laws.times(VP(), 5), torch.ones(5, dtype=torch.long))
    assert model.calls == [10]


def test_a_pair_counts_two_evaluations():
    class Leaf(Conditional):
        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return x_t

    guided = ClassifierFree(Leaf(*pair(VP()).by_class), 2.0)
    with count_evaluations(guided) as count:
        guided(laws.seeded(5, 1), laws.f64(0.3), torch.ones(5, dtype=torch.long))
    assert count.rows == 10


def test_guidance_is_a_denoiser_with_its_facts():
    model = pair(VP())
    guided = ClassifierFree(model, 2.0)
    assert (guided.schedule, guided.shape, guided.num_classes) == (model.schedule, model.shape, 2)


def test_what_it_cannot_guide_is_refused():
    with pytest.raises(UserError, match="trained without labels"):
        ClassifierFree(exact.Gaussian(torch.zeros(1), 1.0, VP()), 2.0)
    with pytest.raises(UserError, match="give a label"):
        ClassifierFree(pair(VP()), 2.0)(laws.seeded(2, 1), laws.f64(0.3))
