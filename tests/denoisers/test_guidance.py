"""Guidance against exact answers: products of Gaussians, classifiers in closed form, intervals, costs."""

import math

import laws
import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import Denoiser, exact
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.denoisers.exact import Labelled
from diffusion.denoisers.guidance import Autoguidance, ClassifierFree, ClassifierGuided, Interval, PathClassifier
from diffusion.denoisers.preconditioning import c_noise
from diffusion.errors import UserError
from diffusion.schedules import VE, VP

every_schedule = pytest.mark.parametrize("schedule", laws.FOUR_SCHEDULES, ids=laws.name)


def classes(schedule):
    """Two classes in the plane: a mixture and a Gaussian."""
    return Labelled(
        [laws.mixture(schedule), exact.Gaussian(laws.f64([0.4, -0.2]), 0.7, schedule)], laws.f64([3.0, 1.0])
    )


class Constant(Denoiser):
    """Answers its number for every pixel."""

    def __init__(self, value, schedule, num_classes=0):
        super().__init__()
        self.value, self.schedule, self.shape, self.num_classes = value, schedule, (2,), num_classes

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.full_like(x_t, self.value if cond is None else self.value + float(cond[0]))


class Bayes(nn.Module):
    """The exact classifier of noisy data, up to a constant that a softmax takes away."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x_t, t):
        return self.model.log_class_prob(x_t, t) + 5.0


@every_schedule
def test_labelled_is_exact(schedule):
    """Without a label it is the denoiser of all data: the score of the log-density by automatic differentiation."""
    model = classes(schedule)
    t = laws.times(schedule, 6, -6, 6)
    x_t = laws.seeded(6, 2)
    x = x_t.clone().requires_grad_()
    parts = torch.stack([law.log_prob_at(x, t) for law in model.classes], 1) + laws.f64([0.75, 0.25]).log()
    score = torch.autograd.grad(parts.logsumexp(1).sum(), x)[0]
    torch.testing.assert_close(model.score(x_t, t), score, rtol=1e-7, atol=1e-7)
    cond = torch.tensor([0, 1, 2, 1, 0, 2])
    answers = model(x_t, t, cond)
    for i, label in enumerate(cond):
        one = model if label == 2 else model.classes[label]
        torch.testing.assert_close(answers[i : i + 1], one(x_t[i : i + 1], t[i]))
    torch.testing.assert_close(model.log_class_prob(x_t, t), (parts - parts.logsumexp(1, keepdim=True)).detach())


@every_schedule
@pytest.mark.parametrize("label", [0, 1])
def test_the_exact_classifier_gives_the_exact_conditional(schedule, label):
    model = classes(schedule)
    guided = ClassifierGuided(model, Bayes(model), 2)
    t = laws.times(schedule, 9, -6, 6)
    x_t, cond = laws.seeded(9, 2), torch.full((9,), label)
    torch.testing.assert_close(guided(x_t, t, cond), model(x_t, t, cond), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(guided(x_t[:1], t[4], cond[:1]), model(x_t[:1], t[4], cond[:1]), rtol=1e-6, atol=1e-7)


class OnTheVPPath(nn.Module):
    """The exact classifier as a network that knows x_t on alpha^2 + sigma^2 = 1, and c_noise, which is linear."""

    def __init__(self):
        super().__init__()
        self.model = classes(VP())

    def forward(self, x, level):
        log_snr = level / c_noise(laws.f64(1.0))
        return Bayes(self.model)(x, VP().inverse_log_snr(log_snr))


@every_schedule
@pytest.mark.parametrize("label", [0, 1])
def test_a_network_of_one_path_classifies_on_every_path(schedule, label):
    model = classes(schedule)
    guided = ClassifierGuided(model, PathClassifier(OnTheVPPath(), schedule), 2)
    t = laws.times(schedule, 9, -6, 6)
    x_t, cond = laws.seeded(9, 2), torch.full((9,), label)
    torch.testing.assert_close(guided(x_t, t, cond), model(x_t, t, cond), rtol=1e-5, atol=1e-6)


def test_classifier_and_classifier_free_guidance_of_one_weight_agree():
    """Both have the score of p(x_t) p(label | x_t)^w."""
    model = classes(VP())
    t, x_t, cond = laws.times(VP(), 6, -4, 4), laws.seeded(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    for weight in (0.0, 0.5, 2.5):
        torch.testing.assert_close(
            ClassifierGuided(model, Bayes(model), 2, weight)(x_t, t, cond),
            ClassifierFree(model, weight)(x_t, t, cond),
            rtol=1e-6,
            atol=1e-7,
        )
    assert torch.equal(ClassifierGuided(model, Bayes(model), 2, 3.0)(x_t, t), model(x_t, t)), "no label, no guidance"


@every_schedule
@pytest.mark.parametrize("weight", [0.4, 1.0, 2.0, 3.5])
def test_autoguidance_has_the_score_of_a_product_of_gaussians(schedule, weight):
    """p (p / p_guide)^(w - 1), the guide the wider one: precisions and precision-weighted means with w and 1 - w."""
    (mean, std), (guide_mean, guide_std) = (0.5, 0.4), (0.3, 0.9)
    model = exact.Gaussian(laws.f64([mean]), std, schedule)
    guide = exact.Gaussian(laws.f64([guide_mean]), guide_std, VE())  # its own path: carried over by log-SNR
    t = laws.times(schedule, 9, -6, 6)
    x_t = laws.seeded(9, 1)
    alpha, sigma = (value[:, None] for value in schedule(t))
    parts = [weight / ((alpha * std) ** 2 + sigma**2), (1 - weight) / ((alpha * guide_std) ** 2 + sigma**2)]
    precision = parts[0] + parts[1]
    centre = alpha * (parts[0] * mean + parts[1] * guide_mean) / precision
    found = Autoguidance(model, guide, weight).score(x_t, t)
    torch.testing.assert_close(found, -precision * (x_t - centre), rtol=1e-6, atol=1e-7)


def test_autoguidance_asks_a_guide_without_classes_without_a_label():
    t, cond = laws.f64(0.5), torch.ones(3, dtype=torch.long)
    x_t = laws.seeded(3, 2)
    model = Constant(1.0, VP(), num_classes=4)
    for guide, answer in ((Constant(0.0, VP()), 2 * 2.0 - 0.0), (Constant(0.0, VP(), 4), 2 * 2.0 - 1.0)):
        assert torch.equal(Autoguidance(model, guide, 2.0)(x_t, t, cond), torch.full_like(x_t, answer))


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=laws.name)
def test_an_interval_is_of_noise_relative_to_the_data(schedule):
    interval = Interval(0.5, 2.0)
    t = schedule.inverse_log_snr(-2.0 * laws.f64([0.4, 0.6, 1.9, 2.1]).log())
    assert interval.holds(schedule, t).tolist() == [False, True, True, False]
    assert bool(interval.holds(schedule, t[1]))
    assert bool(Interval().holds(schedule, t).all())


def test_outside_the_interval_there_is_one_evaluation_and_no_guidance():
    schedule = VP()
    t = schedule.inverse_log_snr(-2.0 * laws.f64([0.4, 0.6, 1.9, 2.1]).log())
    x_t, cond = laws.seeded(4, 2), torch.ones(4, dtype=torch.long)
    leaf = Constant(1.0, schedule, num_classes=4)
    exact_model = classes(schedule)
    free, always = ClassifierFree(leaf, 3.0, Interval(0.5, 2.0)), ClassifierFree(exact_model, 3.0)
    for times, rows in ((t, 6), (t[0], 4), (t[1], 8)):
        with count_evaluations(free) as count:
            free(x_t, times, cond)
        assert count.rows == rows, "inside two, outside one"
    found = ClassifierFree(exact_model, 3.0, Interval(0.5, 2.0))(x_t, t, cond)
    plain, guided = exact_model(x_t, t, cond), always(x_t, t, cond)
    torch.testing.assert_close(found, torch.stack((plain[0], guided[1], guided[2], plain[3])))
    auto = Autoguidance(leaf, Constant(0.0, schedule), 2.0, Interval(0.5, 2.0))
    for times, rows in ((t, 6), (t[0], 4), (t[1], 8)):
        with count_evaluations(auto) as count:
            auto(x_t, times, cond)
        assert count.rows == rows


def test_weight_one_is_off_and_costs_one_evaluation():
    leaf = Constant(1.0, VP(), num_classes=4)
    x_t, cond = laws.seeded(3, 2), torch.ones(3, dtype=torch.long)
    for guided in (ClassifierFree(leaf, 1.0), Autoguidance(leaf, Constant(0.0, VP()), 1.0)):
        with count_evaluations(guided) as count:
            found = guided(x_t, laws.f64(0.5), cond)
        assert count.rows == 3
        assert torch.equal(found, leaf(x_t, laws.f64(0.5), cond))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="needs 0 <= low < high"):
        Interval(2.0, 1.0)
    with pytest.raises(UserError, match="needs 0 <= low < high"):
        Interval(math.nan, 1.0)
    with pytest.raises(UserError, match=r"guide: is for data of shape \(1,\); the model's are \(2,\)"):
        Autoguidance(Constant(1.0, VP()), exact.Gaussian(torch.zeros(1), 1.0, VP()), 2.0)
    with pytest.raises(UserError, match="guide: has 3 classes; the model has 4"):
        Autoguidance(Constant(1.0, VP(), 4), Constant(1.0, VP(), 3), 2.0)
    model = classes(VP())
    with pytest.raises(UserError, match=r"classifier: answers \(3, 2\); needs \(3, 5\)"):
        ClassifierGuided(model, Bayes(model), 5)(laws.seeded(3, 2), laws.f64(0.5), torch.ones(3, dtype=torch.long))
    with pytest.raises(UserError, match="2 positive numbers"):
        Labelled(list(model.classes), laws.f64([1.0, 0.0]))
    with pytest.raises(UserError, match="one shape and one schedule"):
        Labelled([laws.mixture(VP()), laws.mixture(VE())])
