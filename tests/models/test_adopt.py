"""Networks of other people's conventions: adopted rightly they are exact, wrongly they are caught by the check."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign_networks import (
    CASES,
    HELD_OUT,
    LEVELS,
    LINEAR,
    SHAPE,
    Foreign,
    adopt,
    eps,
    law,
    song,
    table,
    with_variance,
)
from torch import nn

import diffusion
from diffusion.denoisers.conventions import path_of
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.models.adopt import AdoptedNote
from diffusion.models.check import data_of
from diffusion.schedules import VP
from diffusion.schedules.forward_process import posterior, variance_for_unit_data


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


class OfFour(Foreign):
    def forward(self, x, sigma, y, scale):
        return super().forward(scale * x, sigma)


class AroundAnother(nn.Module):
    """Holds a network of another signature as `module`, as torch's wrappers do, and is none of them."""

    def __init__(self):
        super().__init__()
        self.module = OfFour(table(LINEAR), eps)

    def forward(self, x, i):
        return self.module(x, i, None, 1.0)


class Changing(nn.Module):
    """Changes what it is given in place."""

    def forward(self, x, i):
        found = CASES["DDPM"].network(x, i.mul_(999).round_())
        x.zero_()
        return found


MADE = {
    "in another": (AroundAnother, "index"),
    "of DataParallel": (lambda: nn.DataParallel(CASES["DDPM"].network), "index"),
    "changes its arguments": (Changing, lambda t: (1000 * t - 1) / 999),
    "changes the path's own time": (lambda: lambda x, t: CASES["DDPM"].network(x, t.mul_(1000).sub_(1)), "t"),
}


@pytest.mark.parametrize("kind", MADE)
def test_networks_as_people_have_them(kind):
    make, time = MADE[kind]
    plain, other = (
        diffusion.adopt(network, "ddpm", "eps", given, SHAPE, levels=LEVELS)
        for network, given in ((CASES["DDPM"].network, "index"), (make(), time))
    )
    for t in (torch.tensor(0.5).double(), torch.tensor([0.25, 0.75]).double()):
        x, before = torch.randn(2, *SHAPE, dtype=torch.float64), t.clone()
        given = x.clone()
        torch.testing.assert_close(other.denoiser(x, t), plain.denoiser(x, t), rtol=1e-9, atol=1e-9)
        assert torch.equal(x, given)
        assert torch.equal(t, before)


FAILING = {
    "sizes": (nn.Linear(3, 3), {"call": lambda net, x, t, labels: net(x)}, r"\(RuntimeError: .*mat1 and mat2"),
    "needs labels": (lambda x, t, y: x + y.float()[0], {}, r"labels None \(AttributeError: .*say labels= in adopt"),
    "no row for none": (Embedded(3), {"labels": (3, 3)}, r"labels \(2,\) int64 from 3 to 3 \(IndexError: index out"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_network_that_fails_is_told_in_one_line_with_what_it_was_given(kind):
    network, options, told = FAILING[kind]
    model = diffusion.adopt(network, "ddpm", "eps", "index-rounded", (2,), **options)
    head = r"network: failed on x \(2, 2\) float32, time \(2,\) int64 from 499 to 499, labels "
    with pytest.raises(UserError, match=head) as error:
        model.denoiser(torch.zeros(2, 2), torch.tensor(0.5))
    assert re.search(told, str(error.value))
    assert "\n" not in str(error.value)


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
    ({"path": {"name": "ddpm", "step": 3}}, r"path: DDPM does not take step; accepted: steps, .*Did you mean 'steps'"),
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
