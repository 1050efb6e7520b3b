"""Which law a figure is of: for a network that is no posterior mean the flow and the reverse SDE are two models."""

import json
import math

import pytest
import torch
from laws import f64

import diffusion
from diffusion.commands import records
from diffusion.commands.compare.groups import group
from diffusion.commands.records import Evaluation, Protocol
from diffusion.denoisers import Denoiser
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.likelihood import Estimate
from diffusion.likelihood.law import law_of
from diffusion.schedules import VP
from diffusion.schedules.schedule import log_snr_ends

DIMS, STD = 4, 0.3


class Shrunk(Denoiser):
    """x_hat = (c^2 + shrink v) / (c^2 + v) y for data N(0, c^2), y = x_t / alpha and v = sigma^2 / alpha^2.

    Right for shrink = 0; otherwise linear and wrong at the noise end, the posterior mean of no law.
    """

    def __init__(self, shrink):
        super().__init__()
        self.shrink, self.schedule, self.shape = shrink, VP(), (DIMS,)

    def forward(self, x_t, t, cond=None):
        alpha, sigma = self.schedule(t.to(x_t.dtype).reshape(-1, *(1,) * (x_t.ndim - 1)))
        v = (sigma / alpha) ** 2
        return (STD**2 + self.shrink * v) / (STD**2 + v) * x_t / alpha


class ClosedForm:
    """Laws of `Shrunk`, a dimension, in y = x_t / alpha over v from v_1 at the noise end to v_0 at the data.

    y - x_hat = (1 - d) v / (c^2 + v) y =: r(v) v y, so that with w(v) = (c^2 + v)^(1 - d)
    flow         dy/dv = r y / 2                y grows as w^(1/2);  eps_hat = r sqrt(v_1) y is N(0, 1) at v_1
    reverse SDE  dy/dv = r y, + dw of var dv    Var y = w(v_0)^2 (Var y_1 / w(v_1)^2 + integral of dv / w^2)
    ELBO         eps - eps_hat = (1 - r v) eps - r sqrt(v) x, whose mean square over dv / v is elementary
    """

    def __init__(self, shrink):
        low, high = log_snr_ends(VP())
        self.noise, self.data = math.exp(-low), math.exp(-high)
        self.d, self.c = shrink, STD**2
        alpha = float(VP()(f64(VP().t_max))[0])
        self.prior = (VP().prior_std / alpha) ** 2

    def flow_variance(self):
        d, c, v1, v0 = self.d, self.c, self.noise, self.data
        at_noise = v1 / ((1 - d) * v1 / (c + v1)) ** 2
        return at_noise * ((c + v0) / (c + v1)) ** (1 - d)

    def sde_variance(self):
        """With the noise of the decoder, v_0."""
        d, c, v1, v0 = self.d, self.c, self.noise, self.data
        power = 1 - 2 * (1 - d)
        integral = ((c + v1) ** power - (c + v0) ** power) / power
        return (c + v0) ** (2 * (1 - d)) * (self.prior * (c + v1) ** (-2 * (1 - d)) + integral) + v0

    def elbo(self, square):
        """Of data of this mean square."""
        d, c, v1, v0 = self.d, self.c, self.noise, self.data
        between = 1 / (c + v0) - 1 / (c + v1)
        of_eps = math.log(v1 / v0) + (d**2 - 1) * math.log((c + v1) / (c + v0)) - c * (1 - d) ** 2 * between
        diffusion_loss = 0.5 * (of_eps + (1 - d) ** 2 * square * between)
        to_prior = 0.5 * ((square + v1) / self.prior - 1 - math.log(v1 / self.prior))
        return -diffusion_loss - to_prior - 0.5 * (math.log(2 * math.pi * v0) + 1)


def log_normal(square, variance):
    return -0.5 * (math.log(2 * math.pi * variance) + square / variance)


@pytest.mark.parametrize("shrink", [0.0, 0.1, -0.15])
def test_each_estimator_meets_the_law_that_it_names(shrink):
    """A wrong linear denoiser: every estimator is held to a closed form of its own."""
    model, truth = Shrunk(shrink), ClosedForm(shrink)
    x = Gaussian(torch.zeros(DIMS).double(), f64(STD), VP()).draw(400, seed=1)
    square, bits = float(x.square().mean()), -1.0 / math.log(2.0)

    ode = diffusion.log_density(model, x)
    assert (ode.law, ode.kind) == ("flow", "exact")
    assert ode.mean().mean == pytest.approx(bits * log_normal(square, truth.flow_variance()), abs=2e-4)

    elbo = diffusion.log_density(model, x, method="elbo", evaluations=128)
    assert (elbo.law, elbo.kind) == ("reverse SDE", "lower bound")
    bound = bits * truth.elbo(square)
    assert elbo.mean().mean == pytest.approx(bound, abs=4 * elbo.random_error)
    assert elbo.random_error < 0.02
    # a bound of its own law's exact figure, whatever the flow's is
    assert bound > bits * log_normal(square, truth.sde_variance()) - 1e-9

    immse = diffusion.log_density(model, x, method="immse", evaluations=128)
    assert (immse.law, immse.kind) == ("reverse SDE", "surrogate")


def test_a_bound_on_the_sde_is_none_on_the_flow():
    """The population's figures in closed form: the bound lies far below the flow's exact figure, in bits/dim."""
    right, wrong = ClosedForm(0.0), ClosedForm(0.1)
    bits, square = -1.0 / math.log(2.0), STD**2
    flow, bound = bits * log_normal(square, wrong.flow_variance()), bits * wrong.elbo(square)
    entropy = bits * log_normal(square, STD**2)
    assert entropy < bound < flow - 0.1
    # for the posterior mean both are the entropy, up to the ends
    for figure in (bits * log_normal(square, right.flow_variance()), bits * right.elbo(square)):
        assert figure == pytest.approx(entropy, abs=2e-3)


def test_every_method_names_its_law():
    model = Shrunk(0.1)
    images = torch.zeros(3, DIMS, dtype=torch.uint8)
    laws = {"ode": "flow", "elbo": "reverse SDE", "immse": "reverse SDE", "elbo-discrete": "chain of 7 steps"}
    for method, law in laws.items():
        options = {"steps": 7} if method == "elbo-discrete" else {}
        estimate = diffusion.log_likelihood(model, images, method=method, levels=17, **options)
        assert estimate.law == estimate.protocol["law"] == estimate.to_dict()["law"] == law


def made(values, **protocol):
    log_prob = f64(values)
    return Estimate(log_prob, 4, 17, torch.zeros_like(log_prob), "lower bound", protocol)


@pytest.mark.parametrize(
    ("protocol", "law"),
    [
        ({"estimator": "probability-flow ODE", "draws": 1}, "flow"),
        ({"estimator": "ELBO, continuous time"}, "reverse SDE"),
        ({"estimator": "I-MMSE"}, "reverse SDE"),
        ({"estimator": "ELBO, discrete time", "times": [0.1, 0.5, 1.0]}, "chain of 2 steps"),
        ({"estimator": "ELBO, latent variables"}, "declared"),
        ({"estimator": "importance-weighted bound"}, "declared"),
        ({"estimator": "PNG"}, "declared"),
        ({}, "declared"),
        ({"estimator": "one of my own", "law": "reverse SDE"}, "reverse SDE"),
    ],
)
def test_a_record_without_the_field_has_the_law_of_its_estimator(protocol, law):
    assert made([-1.0, -2.0], **protocol).law == law
    assert made([-1.0], **protocol).protocol["law"] == law


@pytest.mark.parametrize("law", ["SDE", "chain of few steps", "chain of -1 steps", 3])
def test_an_unknown_law_is_one_line(law):
    with pytest.raises(UserError, match=r"law: found .*accepted: flow, reverse SDE, declared, chain of T steps"):
        made([-1.0], law=law)
    with pytest.raises(UserError, match="law: found"):
        law_of({"estimator": "ELBO, discrete time"})


def test_figures_of_unlike_laws_stand_apart_with_the_reason():
    def row(name, **protocol):
        identity = {"name": "digits", "split": "test", "images": 3, "levels": 17, "sha256": "a"}
        model = {"run": name, "family": "diffusion", "parameters": 10, "data": "digits"}
        return Evaluation(Protocol(identity, "w", "ode", {}), model, made([-1.0, -2.0, -4.0], **protocol), {})

    # alike in all but the law
    rows = [row(law, law=law) for law in ("flow", "reverse SDE", "chain of 5 steps", "chain of 9 steps", "declared")]
    groups = group([*rows, row("flow too", law="flow")])
    assert sorted(len(g.rows) for g in groups) == [1, 1, 1, 1, 2]
    for g in groups:
        assert {r.estimate.law for r in g.rows} == {g.law}
        assert f"law: {g.law}" in g.title
    assert len({g.why for g in groups}) == len(groups)


def test_a_record_and_a_part_of_an_earlier_release_have_their_law(tmp_path):
    """Neither has the field; the part is of the same measurement as one that is made now."""
    question = Protocol({"name": "d", "split": "test", "images": 2, "levels": 17, "sha256": "a"}, "w", "ode", {})
    now = made([-1.0, -2.0], estimator="probability-flow ODE")
    records.write(tmp_path, question, {"run": "r"}, now)
    path = tmp_path / f"{question.name}.json"
    old = json.loads(path.read_text())
    del old["estimate"]["law"], old["estimate"]["protocol"]["law"]
    path.write_text(json.dumps(old))
    assert records.read(path).estimate.law == "flow"
    old["estimate"]["protocol"]["law"] = "flaw"
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"damaged.*law: found 'flaw'"):
        records.read(path)

    first = Estimate(**{**vars(now), "log_prob": f64([-1.0]), "std_error": f64([0.0]), "indices": torch.tensor([0])})
    records.write_part(tmp_path, first)
    (part,) = tmp_path.glob("*.part")
    kept = torch.load(part, weights_only=True)
    summary = json.loads(kept["summary"])
    del summary["protocol"]["law"]
    torch.save({**kept, "summary": json.dumps(summary)}, part)
    second = Estimate(**{**vars(now), "log_prob": f64([-2.0]), "std_error": f64([0.0]), "indices": torch.tensor([1])})
    assert Estimate.join([*records.read_parts(tmp_path, {0, 1}), second]).law == "flow"
