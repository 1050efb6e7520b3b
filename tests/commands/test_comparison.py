"""Differences of figures: paired intervals against SciPy, and what is grouped with what."""

import pytest
import torch
from made_evaluations import estimate, evaluation, normal
from scipy import stats

from diffusion.commands.compare import exports, tables
from diffusion.commands.compare.comparison import (
    common_images,
    gaps,
    of_other_images,
    paired_difference,
    welch_difference,
)
from diffusion.commands.compare.content import Content
from diffusion.commands.compare.groups import between, group, leader
from diffusion.commands.evaluate.given import gain
from diffusion.errors import UserError


def test_a_paired_difference_is_that_of_the_t_test():
    shared = 5 * normal(0)
    a, b = estimate(shared + 0.1 * normal(1)), estimate(shared + 0.1 * normal(2) + 0.2)
    found = paired_difference(a, b)
    test = stats.ttest_rel(a.bits_per_dim.numpy(), b.bits_per_dim.numpy())
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert found.mean / found.sem == pytest.approx(test.statistic, rel=1e-9)
    # what pairing is for: the shared spread is gone
    assert found.high - found.low < 0.1 * (a.mean().high - a.mean().low)
    assert paired_difference(b, a).mean == pytest.approx(-found.mean)


def test_figures_of_unlike_images_are_not_paired():
    with pytest.raises(UserError, match="unlike images"):
        paired_difference(estimate(normal(0)), estimate(normal(1), indices=torch.arange(50) + 1))
    with pytest.raises(UserError, match="unlike images"):
        paired_difference(estimate(normal(0)), estimate(normal(1, 49)))


def test_the_gap_of_unlike_images_is_that_of_welch():
    a, b = estimate(normal(0, 30)), estimate(3 * normal(1, 80) + 1)
    found = welch_difference(a, b)
    test = stats.ttest_ind(a.bits_per_dim.numpy(), b.bits_per_dim.numpy(), equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_unlike_kinds_and_dequantisations_are_grouped_apart():
    rows = [
        evaluation("a", normal(0), dequantization="uniform"),
        evaluation("b", normal(1) + 1, dequantization="uniform"),
        evaluation("c", normal(2) + 2, family="vae"),
        evaluation("d", normal(3) + 3, kind="surrogate", dequantization="uniform"),
        evaluation("e", normal(4) + 9, family="classical", kind="exact"),
        evaluation("f", normal(5) + 8, family="classical", dequantization="uniform"),
        evaluation("g", normal(6), family="eae", model="EAE, declared model"),
        evaluation("h", normal(7), dequantization="uniform", importance_weighted=True),
    ]
    groups = group(rows)
    assert sorted("".join(row.model["run"] for row in g.rows) for g in groups) == sorted(
        ["fba", "c", "d", "e", "g", "h"]
    )
    for g in groups:
        keys = {(row.estimate.kind, row.estimate.protocol.get("dequantization")) for row in g.rows}
        assert len(keys) == 1
        means = [row.estimate.mean().mean for row in g.rows]
        assert means == sorted(means), "the best first"
        assert g.differences[0] is None
        for row, difference in zip(g.rows[1:], g.differences[1:], strict=True):
            assert difference.mean == pytest.approx(row.estimate.mean().mean - means[0])
    # a classical row is the best of its group and of all, yet it is trained models that are compared across groups
    assert [leader(g).model["run"] for g in groups][:3] == ["d", "c", "b"]
    assert groups[-1].rows[0].model["run"] == "e", "without a trained model: last"
    assert [(row.model["run"], best.model["run"]) for row, best, _ in between(groups)][:2] == [("c", "d"), ("b", "d")]
    assert len({g.title for g in groups}) == len(groups)
    assert "declared" in next(g for g in groups if g.rows[0].model["run"] == "g").why
    assert len({g.letter for g in groups}) == len(groups)


def test_unlike_bounds_are_grouped_apart_and_unlike_settings_told():
    weighted = {"method": "iwae", "family": "vae", "estimator": "importance-weighted bound"}
    flow = {"estimator": "probability-flow ODE", "dequantization": "uniform"}
    rows = [
        evaluation("a", normal(0), samples=50, **weighted),
        evaluation("b", normal(1) + 1, samples=5000, **weighted),
        evaluation("c", normal(2) + 2, family="vae", method="elbo", estimator="ELBO, latent variables"),
        evaluation("d", normal(3) + 3, tolerance=1e-2, **flow),
        evaluation("e", normal(4) + 4, tolerance=1e-3, **flow),
        evaluation("f", normal(5) + 5, method="elbo", dequantization="uniform", estimator="ELBO, continuous time"),
        evaluation(
            "g", normal(6), "test", family="classical", dequantization="uniform",
            estimator="Gaussian mixture, full covariances",
        ),
        evaluation(
            "h", normal(7) + 6, method="elbo-discrete", dequantization="uniform", estimator="ELBO, discrete time",
            times=[0.0, 0.5, 1.0], variance="lower",
        ),
    ]  # fmt: skip
    found = {"".join(sorted(str(row.model["run"]) for row in g.rows)): g for g in group(rows)}
    assert set(found) == {"a", "b", "c", "de", "f", "g", "h"}, "a mixture's density is declared, not a flow's"
    assert "50 samples" in found["a"].title
    assert "5000 samples" in found["b"].title
    assert "2 steps" in found["h"].title
    assert "tolerance 0.001 or 0.01" in found["de"].why or "tolerance 0.01 or 0.001" in found["de"].why
    assert "Jensen" in found["f"].why
    assert "ELBO" in found["f"].why
    assert "Jensen" not in found["c"].why


def test_runs_are_compared_on_the_largest_set_that_all_have():
    small, large = normal(0, 5), normal(0, 9)
    found = {
        "x": [evaluation("x", small, data="s"), evaluation("x", large, data="l"), evaluation("x", large, data="o")],
        "y": [evaluation("y", small, data="s"), evaluation("y", large, data="l"), evaluation("y", large, "train")],
    }
    assert [(e.model["run"], e.protocol.data["sha256"]) for e in common_images(found, "test")] == [
        ("x", "l"),
        ("y", "l"),
    ]
    assert of_other_images(found, common_images(found, "test")) == [], "each has a figure of this estimator"
    others = {**found, "y": [*found["y"], evaluation("y", small, data="s", method="elbo")]}
    assert of_other_images(others, common_images(others, "test")) == [
        "y elbo: left out, its figures are of 5 images, not of these"
    ]
    with pytest.raises(UserError, match="x: its train data are not measured"):
        common_images(found, "train")
    with pytest.raises(UserError, match=r"unlike data.*x: 5 images s; y: 9 images l"):
        common_images({"x": found["x"][:1], "y": found["y"][1:2]}, "test")
    foreign = {"x": [evaluation("x", large, data="l", foreign=True)]}
    with pytest.raises(UserError, match="not measured"):
        common_images(foreign, "test")


def test_train_and_test_of_one_question_make_a_gap():
    found = {
        "x": [
            evaluation("x", normal(0, 9), "test"), evaluation("x", normal(1, 9) + 1, "train"),
            evaluation("x", normal(1, 5), "train"), evaluation("x", normal(1, 9), "train", method="elbo"),
        ],
        "y": [evaluation("y", normal(0, 9), "test")],
    }  # fmt: skip
    rows = [found["x"][0], found["y"][0]]
    (gap,) = gaps(rows, found)
    assert gap.test is rows[0]
    assert gap.train is found["x"][1], "of the two the larger one"
    assert gap.difference == welch_difference(gap.test.estimate, gap.train.estimate)
    (back,) = gaps([gap.train], found)
    assert (back.test, back.train) == (gap.test, gap.train), "from either side"
    content = Content("t", "a", group(rows), [gap])
    shown = {row["run"]: row for row in exports.figures(content)}
    assert shown["x"]["test_minus_train"] == pytest.approx(gap.difference.mean)
    assert shown["x"]["train_bits_per_dim"] == gap.train.estimate.mean().mean
    assert (shown["y"]["test_minus_train"], shown["y"]["train_images"]) == (None, None)
    text = tables.markdown(content)
    assert "Welch" in text
    assert tables.difference_text(gap.difference) in text


def test_figures_under_unlike_conditions_are_neither_ranked_together_nor_chosen_before_those_of_one(tmp_path):
    def under(run, told, digest, data="a", n=50):
        row = evaluation(
            run, normal(0, n), data=data, dequantization="uniform", **({"condition": told} if told else {})
        )
        row.protocol.data.update({"condition_sha256": digest} if digest else {})
        return row

    rows = [under("a", "label=3", "3" * 64), under("b", "label=3", "3" * 64), under("c", "label=4", "4" * 64),
            under("d", "c=c.npy", "5" * 64), under("e", "c=c.npy", "6" * 64), under("f", "", "")]  # fmt: skip
    groups = {"".join(sorted(row.model["run"] for row in g.rows)): g for g in group(rows)}
    assert sorted(groups) == ["ab", "c", "d", "e", "f"]
    assert groups["ab"].dequantization == "uniform, given label=3"
    assert groups["f"].dequantization == "uniform"
    assert len({g.title for g in groups.values()}) == 5, "what is apart is told apart"
    few = [under(run, "label=3", "3" * 64, "b", 20) for run in "xy"]
    found = {"x": [under("x", "label=3", "3" * 64), few[0]], "y": [under("y", "label=4", "4" * 64), few[1]]}
    assert common_images(found, "test") == few


def test_the_gain_of_a_condition_is_the_paired_difference_in_bits_per_dim():
    a, b = (estimate(normal(seed), indices=torch.arange(50), condition="kind=dog") for seed in (0, 1))
    found, wanted = gain(a, b), paired_difference(b, a)
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high), rel=1e-9)
    assert abs(found.mean) > 1e-3
