"""Neighbour measures on sets whose answers are known, against their definitions, and their expectations for one law."""

import math

import pytest
import torch

from diffusion.errors import UserError
from diffusion.metrics import density_coverage, memorisation, neighbours, precision_recall
from diffusion.numerics import nearest


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def by_definition(x, y, k):
    """Precision, recall, density and coverage, pair by pair."""

    def radius(points):
        return [sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    x, y = x.tolist(), y.tolist()
    to_y, to_x = radius(y), radius(x)
    inside = [[math.dist(p, q) <= r for q, r in zip(y, to_y, strict=True)] for p in x]
    recalled = [any(math.dist(p, q) <= r for p, r in zip(x, to_x, strict=True)) for q in y]
    precision = sum(map(any, inside)) / len(x)
    density = sum(map(sum, inside)) / (k * len(x))
    coverage = sum(any(row[j] for row in inside) for j in range(len(y))) / len(y)
    return precision, sum(recalled) / len(y), density, coverage


@pytest.mark.parametrize("k", [1, 3, 6])
def test_they_are_their_definitions(k):
    x, y = normals(31, 2) * 1.2, normals(40, 2, 1) + 0.4
    precision, recall, density, coverage = by_definition(x, y, k)
    assert precision_recall(x, y, k) == pytest.approx((precision, recall))
    assert density_coverage(x, y, k) == pytest.approx((density, coverage))


def test_a_mode_that_is_dropped_costs_recall_and_coverage_alone():
    reference = line(0, 1, 2, 3, 100, 101, 102, 103)
    samples = line(0.5, 1.5, 2.5, 1.25)
    assert precision_recall(samples, reference, k=1) == (1.0, 0.5)
    assert density_coverage(samples, reference, k=1)[1] == 0.5
    junk = line(0.5, 1.5, 50, 60)
    assert precision_recall(junk, reference, k=1)[0] == 0.5


def test_an_outlier_of_the_reference_inflates_precision_and_not_density():
    reference = torch.cat((line(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), line(100)))
    noise = line(*range(20, 60, 4))
    assert precision_recall(noise, reference, k=1)[0] == 1.0
    assert density_coverage(noise, reference, k=1)[0] == 1.0
    reference = torch.cat((reference, line(101)))
    assert precision_recall(noise, reference, k=1)[0] == 0.0
    assert density_coverage(noise, reference, k=2)[0] == 1.0


def test_copies_are_inside_balls_without_a_radius():
    """A collapsed model: every sample the same; rounding must not put a point outside its own ball."""
    point = normals(1, 30) * 7 + 1000
    collapsed, reference = point.expand(9, 30), torch.cat((point.expand(5, 30), normals(5, 30) + 1000))
    precision, recall = precision_recall(collapsed, reference, k=3)
    assert (precision, recall) == (1.0, 0.5)


@pytest.mark.parametrize(("n", "m", "k"), [(40, 40, 5), (25, 60, 3)])
def test_for_one_law_the_expectations_hold_whatever_the_law(n, m, k):
    found = torch.tensor(
        [density_coverage(normals(n, 3, s).exp(), normals(m, 3, 5000 + s).exp(), k) for s in range(300)]
    )
    missing = math.prod((m - i) / (n + m - i) for i in range(1, k + 1))
    sems = found.std(0) / len(found) ** 0.5
    assert abs(float(found[:, 0].mean()) - 1.0) < 4 * float(sems[0])
    assert abs(float(found[:, 1].mean()) - (1.0 - missing)) < 4 * float(sems[1])


def test_chunks_change_nothing(monkeypatch):
    x, y = normals(50, 4), normals(64, 4, 1)
    whole = (*precision_recall(x, y), *density_coverage(x, y))
    copies = memorisation(x, y, normals(30, 4, 2))
    monkeypatch.setattr(nearest, "_BLOCK", 300)
    monkeypatch.setattr(neighbours, "_BLOCK", 40)
    assert (*precision_recall(x, y), *density_coverage(x, y)) == whole
    again = memorisation(x, y, normals(30, 4, 2))
    torch.testing.assert_close(again.distances, copies.distances, rtol=1e-12, atol=0)
    assert torch.equal(again.neighbours, copies.neighbours)


def test_planted_copies_are_found():
    generator = torch.Generator().manual_seed(0)

    def images(n):
        return torch.randint(0, 256, (n, 1, 6, 6), generator=generator).to(torch.uint8)

    training, held_out, samples = images(500), images(400), images(300)
    honest = memorisation(samples, training, held_out)
    assert abs(honest.share - honest.expected) < 4 * honest.std_error
    assert honest.expected == 0.01
    planted = samples.clone()
    planted[40:70] = training[100:130]
    found = memorisation(planted, training, held_out)
    assert 0.1 <= found.share <= 0.1 + 2 * honest.share
    assert (found.share - found.expected) / found.std_error > 4
    assert found.distances[40:70].tolist() == [0.0] * 30
    assert found.neighbours[40:70].tolist() == list(range(100, 130))
    assert set(found.distances.argsort()[:30].tolist()) == set(range(40, 70))


def test_a_fair_model_is_seldom_accused():
    """Fresh draws of the law: the deviation from the expected share, in standard errors, is of order one."""
    scores = []
    for s in range(60):
        found = memorisation(normals(400, 2, s), normals(300, 2, 1000 + s), normals(400, 2, 2000 + s), quantile=0.05)
        scores.append((found.share - found.expected) / found.std_error)
    assert 0.6 < float(torch.tensor(scores).square().mean().sqrt()) < 1.5


@pytest.mark.parametrize("k", [0, 5, 9])
def test_k_is_checked(k):
    with pytest.raises(UserError, match=f"found {k} for 5 features; accepted: 1 to 4"):
        precision_recall(normals(5, 2), normals(9, 2), k)
    with pytest.raises(UserError, match="accepted: 1 to 4"):
        density_coverage(normals(9, 2), normals(5, 2), k)


def test_memorisation_needs_images():
    with pytest.raises(UserError, match="a set without images"):
        memorisation(normals(5, 2), normals(9, 2), normals(0, 2))
