"""The loop to a target error, on exact models: it arrives, stops, spends where the budget is largest, and says so."""

import math

import pytest
import torch
from laws import seeded
from linear_gaussian import LinearGaussian

from diffusion import log_density, log_likelihood
from diffusion.baselines.importance_weighted import importance_weighted
from diffusion.denoisers.exact import Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer, Estimate
from diffusion.likelihood.probability_flow import ESTIMATOR
from diffusion.likelihood.target_error import Plan, next_plan, reach, remembering
from diffusion.numerics.random import FIXED_ORDER, fixed_subset
from diffusion.schedules import VE, VP

DEQUANTIZER = Dequantizer(17)


def mixture():
    return GaussianMixture(0.5 * seeded(4, 8), torch.full((4,), 0.2).double(), VP())


def images(count):
    return DEQUANTIZER.quantize(mixture().draw(count, seed=1))


def made_up(n, sem, budget, **protocol):
    """An estimate of n images with a given spread and budget."""
    values = torch.linspace(-1, 1, n, dtype=torch.float64)
    values = values / values.std() * sem * math.sqrt(n) * math.log(2)
    protocol = {"estimator": ESTIMATOR, "method": "dopri5", "trace": "hutchinson", "tolerance": 1e-4, **protocol}
    return Estimate(values, 1, 17, torch.zeros(n).double(), "lower bound", protocol, error_budget=budget)


def test_a_target_below_the_choice_of_images_is_for_their_measurement():
    estimate = log_likelihood(mixture(), images(40), levels=17, tolerance=1e-2, target_error=0.02)
    target = estimate.protocol["target"]
    assert isinstance(target, dict)
    assert (len(estimate), target["met"]) == (40, True)
    assert estimate.measurement_error <= 0.02 < estimate.total_error
    assert "all 40 images are taken" in target["notes"][0]
    pilot, *rounds = target["rounds"]
    assert pilot["measurement_error"] > 0.02
    assert 1 <= len(rounds) <= 4
    assert int(str(estimate.protocol["draws"])) * int(str(estimate.protocol["probes"])) > 1
    assert set(estimate.error_budget) == {"test set", "probes", "draws", "solver", "data end", "noise end"}
    assert all(spent["evaluations"] > 0 and spent["seconds"] > 0 for spent in target["rounds"])
    plain: dict = {key: estimate.protocol[key] for key in ("draws", "probes", "tolerance")}
    direct = log_likelihood(mixture(), images(40), levels=17, **plain)
    assert abs(direct.mean().mean - estimate.mean().mean) < 1e-3, "the protocol repeats the figure"


def test_as_many_images_as_it_takes_and_no_more():
    """A bound of many images: the choice of images is part of the error, and all of them are not needed."""
    told = []

    def measure(keys, options):
        told.append(len(keys))
        return log_likelihood(mixture(), images(2000)[keys], method="immse", levels=17, indices=keys, **options)

    found = reach(remembering(measure), torch.arange(2000), {"evaluations": 16}, 0.05)
    assert found.met
    assert 32 < len(found.estimate) < 1000
    assert found.estimate.total_error <= 0.05
    assert found.estimate.indices is not None
    assert sorted(found.estimate.indices.tolist()) == list(range(len(found.estimate))), "the first so many"
    again = reach(remembering(measure), torch.arange(2000), {"evaluations": 16}, 0.05)
    assert torch.equal(again.estimate.log_prob, found.estimate.log_prob), "the same question, the same figure"
    assert again.options == found.options


def test_images_in_class_order_are_taken_from_all_classes():
    """Two classes of very different bits/dim, one after the other: the figure is of both, and says which it is of."""
    model = Gaussian(torch.zeros(4).double(), 0.2, VP())
    x = torch.cat((0.1 * seeded(200, 4), 0.1 * seeded(200, 4) + 0.6))
    whole = log_density(model, x, method="immse", evaluations=32)
    first, second = whole.bits_per_dim.split(200)
    assert float(second.mean() - first.mean()) > 4
    found = log_density(model, x, method="immse", evaluations=32, target_error=0.25)
    assert found.indices is not None
    rows = found.indices
    target = found.protocol["target"]
    assert isinstance(target, dict)
    assert (target["met"], target["order"]) == (True, FIXED_ORDER)
    assert 32 < len(found) < 400
    assert rows.tolist() == fixed_subset(400, len(found)).tolist(), "in the order of the images given"
    assert abs(found.mean().mean - whole.mean().mean) < 3 * found.total_error <= 0.75
    torch.testing.assert_close(found.log_prob, whole.log_prob[rows], rtol=0, atol=10 * float(whole.std_error.max()))


def test_a_target_that_the_pilot_meets_costs_the_pilot_alone():
    estimate = log_likelihood(mixture(), images(20), method="elbo", levels=17, evaluations=64, target_error=2.0)
    target = estimate.protocol["target"]
    assert isinstance(target, dict)
    assert len(target["rounds"]) == 1
    assert target["met"]


def test_more_importance_samples_are_said_to_move_the_bound():
    model = LinearGaussian(shift=1.0)
    x = model.draw(30)

    def measure(keys, options):
        return importance_weighted(model, x[keys], indices=keys, **options)

    found = reach(remembering(measure), torch.arange(30), {"samples": 4}, 0.02)
    assert found.met
    assert found.options["samples"] > 4
    assert found.estimate.error_budget["samples"] <= 0.02
    assert any("how tight the bound is" in note for note in found.notes)


def test_the_ends_cannot_be_bought_off():
    """A target below what the path leaves out is not met, and the reason is told; the rest is brought below it."""
    model = Gaussian(torch.zeros(3).double(), 0.2, VE(sigma_min=0.2))
    x = model.draw(40, seed=1)
    estimate = log_density(model, x, target_error=0.01, tolerance=1e-3)
    target = estimate.protocol["target"]
    assert isinstance(target, dict)
    assert not target["met"]
    assert any("ends of the path" in note for note in target["notes"])
    assert estimate.error_budget["data end"] > 0.01
    assert estimate.error_budget["solver"] < 0.01


@pytest.mark.parametrize("cause", ["probes", "draws", "solver"])
def test_compute_goes_where_the_budget_is_largest(cause):
    budget = {"probes": 1e-4, "draws": 1e-4, "solver": 1e-5} | {cause: 0.02}
    plan = next_plan(made_up(100, 0.1, budget, draws=1, probes=1), Plan(100, 1, 1), 100, 0.01)
    grown = {"probes": plan.probes, "draws": plan.draws, "solver": plan.tighter + 1}
    assert grown.pop(cause) > 1
    if cause != "probes":
        assert set(grown.values()) == {1}
    assert plan.images == 100


def test_the_plan_is_predicted_to_meet_the_target_at_the_least_cost():
    """Against all the plans of a small table, by the formulas of the module's text."""
    estimate = made_up(100, 0.05, {"probes": 0.03, "draws": 0.02, "solver": 0.0}, draws=1, probes=1)
    of_probe, of_draw = 0.09, 0.04
    target = 0.012
    plan = next_plan(estimate, Plan(100, 1, 1), 100, target)
    variance = (of_draw / plan.draws + of_probe / (plan.draws * plan.probes)) / 100
    assert math.sqrt(variance) <= target
    cost = plan.draws * (1 + 2 * plan.probes)
    for draws in range(1, 20):
        for probes in range(1, 20):
            if math.sqrt((of_draw / draws + of_probe / (draws * probes)) / 100) <= 0.93 * target:
                assert cost <= 1.2 * draws * (1 + 2 * probes)


def test_errors():
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="target_error: found"):
            log_likelihood(mixture(), images(4), levels=17, target_error=target)
