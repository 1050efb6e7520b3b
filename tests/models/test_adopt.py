"""Networks of other people's conventions: adopted rightly they are exact, wrongly they are caught by the check."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign_networks import CASES, LEVELS, LINEAR, SHAPE, Foreign, eps, images, law, song, table, with_variance
from torch import nn

import diffusion
from diffusion.denoisers.conventions import path_of
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.models.adopt import AdoptedNote
from diffusion.models.check import best_end, check, data_of
from diffusion.schedules import DDPM, VP
from diffusion.schedules.forward_process import posterior, variance_for_unit_data

HELD_OUT = images(32)
WRONG = [(name, truth) for name, case in CASES.items() for truth in case.wrong]


def adopt(case, **changes):
    return diffusion.adopt(case.network, **{**case.said, "shape": SHAPE, "levels": LEVELS, **changes})


@pytest.mark.parametrize("name", CASES)
def test_a_convention_adopted_rightly_is_the_exact_denoiser(name):
    """At its own noise levels, in every prediction: the law's posterior mean in [-1, 1]."""
    model = adopt(CASES[name])
    schedule = model.denoiser.schedule
    exact = law(schedule)
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    low, high = schedule.log_snr(ends)
    times = schedule.inverse_log_snr(torch.linspace(float(low), float(high), 7, dtype=torch.float64))
    if model.adopted.convention.time == "index-rounded":
        times = (times * 1000).round() / 1000
    x_t = torch.randn(7, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(model.denoiser.eps(x_t, times), exact.eps(x_t, times), rtol=1e-8, atol=1e-8)
    middle = times[3]
    for kind in ("x", "eps", "score", "v", "velocity"):
        found = model.denoiser.prediction(kind, x_t, middle)
        torch.testing.assert_close(found, exact.prediction(kind, x_t, middle), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_the_check_has_nothing_to_say_of_a_convention_adopted_rightly(name):
    found = adopt(CASES[name]).check(HELD_OUT, levels=10)
    assert found.passed, str(found)
    assert found.tried > 15
    assert "nothing wrong on 32 images" in str(found)


def test_the_check_has_nothing_to_say_of_an_exact_denoiser_whatever_the_images():
    """Their mean is that of few draws, which no x_hat near noise can know; a mean that is really off is still named."""
    model = Gaussian(torch.full(SHAPE, 0.2), 0.3, VP())
    for seed in range(30):
        data = 0.2 + 0.3 * torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(seed))
        found = check(model, data, levels=3)
        assert found.passed, f"{seed}: {found}"
    assert any("range of the data" in line for line in check(model, data + 0.1, levels=3).lines())


@pytest.mark.parametrize(("name", "truth"), WRONG)
def test_the_check_names_what_was_said_wrongly(name, truth):
    # a step of a thousand is seen on many numbers alone
    some, levels = (images(160), 12) if "index one" in truth else (HELD_OUT, 6)
    found = adopt(CASES[name], **CASES[name].wrong[truth]).check(some, levels=levels)
    assert any(truth in better for better in found.better), str(found)
    assert not found.passed
    assert sum("fits better" in line for line in found.lines()) == len(found.better)


@pytest.mark.parametrize("name", ["DDPM", "Song's VE", "EDM", "flow matching"])
def test_likelihoods_and_samples_are_those_of_the_law(name):
    model = adopt(CASES[name])
    schedule, some = model.denoiser.schedule, HELD_OUT[:4]
    exact = law(schedule)
    found = diffusion.log_likelihood(model, some, method="ode", probes=2, seed=1)
    truth = diffusion.log_likelihood(exact, some, method="ode", probes=2, seed=1)
    torch.testing.assert_close(found.bits_per_dim, truth.bits_per_dim, rtol=1e-4, atol=1e-4)
    bound = diffusion.log_likelihood(model, some, method="elbo", evaluations=8)
    torch.testing.assert_close(
        bound.log_prob, diffusion.log_likelihood(exact, some, method="elbo", evaluations=8).log_prob
    )
    drawn = diffusion.sample(model, 4, sampler="ddim", steps=8, dtype="float64")
    torch.testing.assert_close(drawn, diffusion.sample(exact, 4, sampler="ddim", steps=8, dtype="float64").clamp(-1, 1))


def test_a_likelihood_is_that_of_the_closed_form():
    """Not only equal to our own exact denoiser: of a Gaussian in (0, 1), whose density is known."""
    scale = 0.5 * LEVELS / (LEVELS - 1)
    own = Gaussian(torch.full((3,), scale * 0.2 + 0.5, dtype=torch.float64), scale * 0.3, VP())

    def network(x, time):
        alpha, sigma = song(time.double())
        return (own.posterior_mean(x, alpha, sigma) * alpha[:, None] - x) / sigma[:, None] ** 2

    model = diffusion.adopt(network, "ve-song", "score", "t", (3,), (0, 1), LEVELS)
    some = Dequantizer(LEVELS).quantize(0.2 + 0.3 * torch.randn(40, 3))
    x = data_of(some, model.dequantizer, (3,))
    normal = torch.distributions.Normal(0.2, math.hypot(0.3, math.exp(-0.5 * float(model.denoiser.schedule.log_snr(
        torch.tensor(model.denoiser.schedule.t_min).double())))))  # fmt: skip
    found = diffusion.log_density(model, x, method="ode", tolerance=1e-6)
    torch.testing.assert_close(found.log_prob, normal.log_prob(x).sum(1), rtol=2e-2, atol=2e-2)
    mean = diffusion.log_likelihood(model, some, method="ode", draws=4, trace="exact").mean()
    truth = -(normal.log_prob(x).sum(1) + 3 * math.log(2 / LEVELS)).mean() / (3 * math.log(2))
    assert mean.mean == pytest.approx(float(truth), abs=0.02)


@pytest.mark.parametrize("table", [torch.linspace(0.2, 1e-4, 50).double(), [0.4, 0.1, 0.2, 0.02], [0.02] * 30])
def test_betas_that_do_not_rise_are_betas(table):
    found = path_of(table).schedule
    wanted = torch.log1p(-torch.as_tensor(table, dtype=torch.float64)).cumsum(0)
    times = torch.arange(1, len(table) + 1, dtype=torch.float64) / len(table)
    torch.testing.assert_close(2.0 * found.log_alpha(times), wanted, rtol=1e-10, atol=0)
    kept = torch.cat((torch.ones(1).double(), wanted.exp()))
    if float(kept[-1]) < 0.5:
        again = path_of(kept)
        assert again.first == 1
        torch.testing.assert_close(again.schedule.log_snr(times), found.log_snr(times), rtol=1e-9, atol=1e-9)


def test_the_check_names_linear_betas_that_are_scaled_with_the_number_of_levels():
    """And all that has to be said of the path, the number of levels, too."""
    alphas_cumprod = torch.cumprod(1 - torch.linspace(2.5e-5, 0.005, 4000, dtype=torch.float64), 0)
    path = {"name": "ddpm", "steps": 4000}
    model = diffusion.adopt(Foreign(table(alphas_cumprod), eps), path, "eps", "index", SHAPE, levels=LEVELS)
    better = list(model.check(HELD_OUT, levels=6).better)
    fields = {"betas": "linear", "steps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005}
    assert better[0] == f"path={ {'name': 'ddpm', **fields} }"
    told = diffusion.adopt(model.adopted.network.network, {**path, **fields}, "eps", "index", SHAPE, levels=LEVELS)
    names = [name for name, _ in told.adopted.convention.neighbours()]
    assert "path={'name': 'ddpm', 'betas': 'linear', 'steps': 4000}" in names
    assert better[0] not in names
    assert "path={'name': 'ddpm', 'betas': 'cosine', 'steps': 4000}" in names


def test_an_index_that_is_two_off_is_named_once():
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-3, 0.2, 100, dtype=torch.float64), 0)
    network = Foreign(table(alphas_cumprod, first=2), eps)
    model = diffusion.adopt(network, {"alphas_cumprod": alphas_cumprod}, "eps", "index", SHAPE, levels=LEVELS)
    assert list(model.check(HELD_OUT, levels=6).better) == ["an index 2 higher"]


def test_what_does_not_fit_a_network_is_not_counted_as_tried():
    """Nor does a better path that lacks some levels, as here, lead the next round beyond its ends."""

    def network(x, time):
        if not 0.0 <= float(time.min()) <= float(time.max()) <= 1.0:
            raise ValueError("not trained for that")
        return x

    model = diffusion.adopt(network, "flow", "velocity", "t", (2,))
    convention = model.adopted.convention
    data = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    found = model.check(data, levels=4)
    assert "path=" in next(iter(found.better))
    assert 0 < found.tried < len(list(convention.neighbours())) - 3


class Ended(nn.Module):
    """Right up to a log-SNR, and then an answer of the wrong size, as of a network that was not trained there."""

    def __init__(self, network, index):
        super().__init__()
        self.network, self.index = network, index

    def forward(self, x, time):
        answer = self.network(x, time)
        return torch.where((time < self.index)[:, None, None, None], 3.0 + answer, answer)


def test_a_network_that_is_useless_at_the_data_end_is_said_and_ended(capsys):
    case = CASES["DDPM"]
    said = {**case.said, "shape": SHAPE, "levels": LEVELS}
    network = Ended(case.network, 30)
    edge = float(DDPM().log_snr(torch.tensor(31 / 1000, dtype=torch.float64)))
    whole = diffusion.adopt(network, **said)
    with pytest.warns(AdoptedNote, match=r"the noise estimate is worse than predicting zero.*log_snr_max='best'"):
        bad = diffusion.log_likelihood(whole, HELD_OUT, method="elbo", evaluations=16)
    found = whole.check(HELD_OUT, levels=12)
    assert any("is worse than predicting zero" in line and "'best'" in line for line in found.lines())
    model = diffusion.adopt(network, **said, log_snr_max="best", images=HELD_OUT)
    assert "is best on 32 images" in capsys.readouterr().out
    high = float(model.denoiser.schedule.log_snr(torch.tensor(model.denoiser.schedule.t_min).double()))
    assert edge - 0.7 < high < edge + 0.1
    good = diffusion.log_likelihood(model, HELD_OUT, method="elbo", evaluations=16)
    assert good.mean().mean < bad.mean().mean - 1.0
    # the exact network is best to the end of its path
    right = adopt(case)
    assert best_end(right.denoiser, data_of(HELD_OUT, right.dequantizer, SHAPE)) > 8.5


def test_a_path_that_does_not_reach_noise_is_said_once():
    model = diffusion.adopt(
        Foreign(table(LINEAR[:500]), eps), {"alphas_cumprod": LINEAR[:500]}, "eps", "index", SHAPE, levels=LEVELS
    )
    with pytest.warns(AdoptedNote, match=r"ends at log-SNR .*, not in noise .*fitted_start="):
        model.sample(1, sampler="ddim", steps=2)
    assert any("not in noise" in line for line in model.check(HELD_OUT, levels=4).lines())
    model.sample(1, sampler="ddim", steps=2)  # a second warning would fail


class Embedded(nn.Module):
    """Adds a class's number; what stands for none is asked for by the index that it was trained with."""

    def __init__(self, classes):
        super().__init__()
        self.table = nn.Embedding(classes, 1)
        with torch.no_grad():
            self.table.weight.copy_(torch.arange(float(classes))[:, None])

    def forward(self, x, time, y=None):
        return 0.1 * x + (10.0 if y is None else self.table(y))


@pytest.mark.parametrize(("labels", "classes", "none"), [((3, None), 3, 10.0), ((3, 3), 4, 3.0), ((3, -1), 3, None)])
def test_labels_with_a_null(labels, classes, none):
    network = Embedded(classes)
    call = (lambda net, x, t, y: net(x, t, torch.where(y < 0, 2, y))) if none is None else None
    model = diffusion.adopt(network, "cosine", "eps", "t", (2,), labels=labels, call=call)
    x, t = torch.zeros(4, 2), torch.tensor(0.5)
    expected = 2.0 if none is None else none
    assert model.denoiser.eps(x, t).tolist() == [[expected, expected]] * 4
    mixed = model.denoiser.eps(x, t, torch.tensor([0, 3, 1, 3])).detach()
    assert mixed[:, 0].tolist() == [0.0, expected, 1.0, expected]
    assert diffusion.sample(model, 2, sampler="ddim", steps=2, label=1, guidance=2.0).shape == (2, 2)


def test_a_label_that_is_required():
    model = diffusion.adopt(Embedded(3), "cosine", "eps", "t", (2,), labels=3)
    for call in (
        lambda: diffusion.sample(model, 1),
        lambda: diffusion.log_density(model, torch.zeros(1, 2)),
        lambda: diffusion.sample(model, 1, label=0, guidance=2.0),
    ):
        with pytest.raises(UserError, match=r"label: this network needs one, 0 to 2"):
            call()
    assert diffusion.sample(model, 1, label=2, sampler="ddim", steps=2).shape == (1, 2)
    plain = diffusion.adopt(lambda x, t: x, "cosine", "eps", "t", (2,))
    with pytest.raises(UserError, match="label"):
        diffusion.sample(plain, 1, label=0)


def test_outputs_as_people_have_them():
    plain = adopt(CASES["DDPM"])
    x, t = torch.zeros(2, *SHAPE), torch.tensor(0.5)
    for wrap in (lambda y: (y, None), lambda y: SimpleNamespace(sample=y), lambda y: {"sample": y}):
        other = adopt(CASES["DDPM"], call=lambda net, x, t, labels, wrap=wrap: wrap(net(x, t)))
        assert torch.equal(other.denoiser(x, t), plain.denoiser(x, t))
    two = diffusion.adopt(Foreign(table(LINEAR), with_variance), "ddpm", "eps", "index", SHAPE, levels=LEVELS)
    assert torch.equal(two.denoiser(x, t), plain.denoiser(x, t))


@pytest.mark.parametrize("place", [0.0, 1.0, 0.3])
def test_a_learned_variance_is_used_by_the_discrete_bound(place):
    """At its ends it is the lower and the upper choice."""
    half = 2.0 * place - 1.0
    network = Foreign(table(LINEAR), lambda x, x_hat, eps, alpha, sigma: torch.cat((eps, 0 * eps + half), 1))
    model = diffusion.adopt(network, "ddpm", "eps", "index", SHAPE, levels=LEVELS)
    times, some = torch.arange(1, 1001, 37) / 1000, HELD_OUT[:6]

    def bound(variance):
        return diffusion.log_likelihood(model, some, method="elbo-discrete", times=times, variance=variance)

    found, lower, upper = (bound(variance).terms["steps"] for variance in ("learned", "lower", "upper"))
    if place in (0.0, 1.0):
        torch.testing.assert_close(found, upper if place else lower)
        return
    s, t = times.double()[:-1], times.double()[1:]
    schedule, dims = model.denoiser.schedule, math.prod(SHAPE)
    q, high = posterior(schedule, t, s).variance, variance_for_unit_data(schedule, t, s)
    # of the lower choice the whole term is the weighted error, which any variance divides
    ratio = (q / high) ** place
    expected = lower * ratio - 0.5 * dims * (ratio - 1 - ratio.log())
    torch.testing.assert_close(found, expected.expand_as(found))


def test_a_network_without_a_learned_variance_is_refused_one():
    with pytest.raises(UserError, match=r"variance: found 'learned'.*accepted: lower, upper"):
        diffusion.log_likelihood(
            adopt(CASES["DDPM"]), HELD_OUT[:2], method="elbo-discrete", steps=3, variance="learned"
        )


GOOD = {"path": "ddpm", "predicts": "eps", "time": "index", "shape": SHAPE, "levels": LEVELS}
REFUSED = [
    ({"path": "dpm"}, r"path: 'dpm' is not known.*Did you mean 'ddpm'"),
    ({"path": {"name": "ddpm", "step": 3}}, r"path: DDPM does not take step"),
    ({"path": {"beta": [0.1]}}, r"path: 'beta' is not known; accepted: betas, alphas_cumprod.*Did you mean 'betas'"),
    ({"path": {"betas": [0.1, 2.0]}}, r"path: found betas"),
    ({"path": 7}, r"path: found 7; accepted: ddpm, "),
    ({"path": (lambda t: t, lambda t: "a")}, r"path: the functions \(alpha, sigma\) failed"),
    ({"path": (lambda t: 1 + 0 * t, lambda t: (t - 0.5).abs())}, r"path: alpha_t / sigma_t"),
    ({"path": (lambda t: 1 - t, 0.5)}, r"path: found function, float; needs two functions"),
    ({"path": [0.1, 2.0]}, r"path: found betas of shape"),
    ({"path": [0.9999, 0.99, 0.98]}, r'path: found a table that falls from 0.9999 to 0.98, .*path={"betas": table} or'),
    ({"path": [0.9999, 0.999, 0.998, 0.99, 0.9, 0.4]}, r"path: found a table that falls from 0.9999 to 0.4, which may"),
    ({"path": [0.7, 0.3, 0.1]}, r"path: found a table that falls from 0.7 to 0.1, which may be betas, alphas or"),
    ({"path": ["a", "b"]}, r"path: found \['a', 'b'\]; accepted: ddpm, "),
    ({"time": lambda t: None}, r"time: the function failed on a tensor of times of shape \(B,\)"),
    ({"time": lambda t: t[:, None]}, r"time: the function returned torch.float64 of shape \(2, 1\) for times of shape"),
    ({"time": lambda t: t.sum()}, r"time: the function returned torch.float64 of shape \(\) for"),
    ({"time": lambda t, more: t}, r"time: the function failed"),
    ({"cond": [1, 2]}, r"cond: says the labels of images="),
    ({"predicts": "epsilon"}, r"predicts: 'epsilon' is not known.*Did you mean 'eps'"),
    ({"time": "indx"}, r"time: 'indx' is not known.*Did you mean 'index'"),
    ({"path": "vp"}, r"time: found an index, and the path VP.*no numbered levels; accepted: t, 1-t, 999t"),
    ({"shape": 3}, r"shape: found 3"),
    ({"data_range": (1, 0)}, r"data_range: found \(1\.0, 0\.0\)"),
    ({"data_range": 1}, r"data_range: found 1"),
    ({"levels": None, "data_range": (0, 1)}, r"data_range: goes with levels="),
    ({"levels": 1}, r"levels: found 1"),
    ({"levels": 70_000}, r"levels: found 70000; accepted: 2 to 65536"),
    ({"name": ""}, r"name: found ''; must be a word"),
    ({"name": 3}, r"name: found 3; must be a word"),
    ({"call": 1}, r"call: found 1; needs a function"),
    ({"shape": ()}, r"shape: found \(\); needs the sides"),
    ({"labels": (1, 2, 3)}, r"labels: found"),
    ({"log_snr_max": "bst"}, r"log_snr_max: found 'bst'; accepted: a number, or 'best'"),
    ({"log_snr_max": "best"}, r"log_snr_max: 'best' is chosen on held-out images"),
    ({"log_snr_max": -40.0}, r"log_snr_max: found -40; the path is from"),
    ({"sigma_data": 0}, r"sigma_data: found 0; must be positive"),
]


@pytest.mark.parametrize(
    ("changes", "told"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else next(iter(value), "")
)
def test_what_is_refused(changes, told):
    with pytest.raises(UserError, match=told) as error:
        diffusion.adopt(CASES["DDPM"].network, **{**GOOD, **changes})
    assert "\n" not in str(error.value)


def test_a_check_of_images_that_do_not_fit():
    model = adopt(CASES["DDPM"])
    with pytest.raises(UserError, match=r"images: found shape"):
        model.check(torch.zeros(3, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"images: found 1 at"):
        model.check(HELD_OUT[:1])


class Classes(nn.Module):
    """The right eps for the label that a sample has, 0 or 1: the value of all its pixels."""

    def forward(self, x, time, labels):
        a = LINEAR[time].reshape(-1, 1)
        return (x - a.sqrt() * (labels[:, None] - 0.5)) / (1 - a).sqrt()


def test_a_network_that_needs_a_label_is_checked_on_labelled_images(capsys):
    labels = [0, 1] * 8
    x = torch.tensor(labels)[:, None].expand(16, 3) - 0.5 + 1e-3 * torch.randn(16, 3)
    said = {"path": "ddpm", "predicts": "eps", "time": "index-rounded", "shape": (3,), "labels": 2}
    model = diffusion.adopt(Classes(), **said, images=x, cond=labels, log_snr_max="best")
    printed = capsys.readouterr().out
    assert "is best on 16 images" in printed
    assert "eps error" in printed
    assert max(level.error for level in model.check(x, cond=labels, levels=4).levels) < 0.1
    found = diffusion.log_density(model, x, cond=labels, method="elbo", evaluations=4)
    assert len(found.log_prob) == 16
    some = diffusion.adopt(Classes(), **said, levels=4)
    assert len(some.log_likelihood(torch.ones(2, 3).byte(), cond=[0, 1], method="elbo", evaluations=4).log_prob) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"levels": "4"}, r"levels: found '4'; must be a whole number"),
        ({"levels": 3.0}, r"levels: found 3\.0; must be a whole number"),
        ({"levels": 1}, r"images: found 32 at 1 noise levels"),
        ({"seed": 0.5}, r"seed: found 0\.5"),
        ({"cond": [0, 1]}, r"cond: found 2 labels for 32 samples"),
        ({"cond": [3] * 32}, r"cond: found 3; the model has the classes 0 to 2"),
    ],
)
def test_what_a_check_refuses(options, told):
    with pytest.raises(UserError, match=told):
        adopt(CASES["DDPM"], labels=3).check(HELD_OUT, **{"cond": 0, **options})


def test_the_check_of_a_model_of_our_own_and_of_one_that_is_not_trained():
    model = diffusion.load("pretrained:digits")
    test = diffusion.data.load_images("digits").test[:24]
    found = model.check(test, levels=6)
    assert found.passed, str(found)
    assert found.tried == 0
    last = next(value for name, value in model.module.named_parameters() if value.ndim == 4 and value.shape[0] <= 17)
    with torch.no_grad():
        last.normal_()
    assert not model.check(test, levels=6).passed


def test_draws_are_clipped_where_that_is_said():
    """x_hat of draws alone, in the network's own units: a network on [0, 1] is clipped there, around 0."""
    how = {"path": "ddpm", "predicts": "x", "time": "index", "shape": (1, 2, 2), "levels": 256, "data_range": (0, 1)}
    plain, clipped = (diffusion.adopt(lambda x, t: 3.0 + 0.0 * x, **how, clip=clip) for clip in (None, 0.75))
    x, t = torch.zeros(2, 1, 2, 2), torch.tensor([0.25, 0.75])
    scale, middle = plain.adopted.convention.units
    with torch.no_grad():
        assert torch.equal(plain.drawn_with(x, t), clipped.denoiser(x, t))
        torch.testing.assert_close(scale * clipped.drawn_with(x, t) + middle, torch.full_like(x, 0.75))
    assert plain.weights != clipped.weights
    drawn = clipped.sample(1, sampler="ddim", steps=2)
    torch.testing.assert_close(scale * drawn + middle, torch.full((1, 1, 2, 2), 0.75))


def test_numbers_of_numpy_are_taken_as_meant():
    given = {**GOOD, "data_range": np.array([0, 1]), "threshold": (np.float32(0.5), np.int64(2))}
    model = diffusion.adopt(CASES["DDPM"].network, **given)
    assert model.adopted.convention.data_range == (0.0, 1.0)
    assert model.threshold == (0.5, 2.0)
