"""Hubness against scikit-learn's neighbours and scipy's skewness, and where its value is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import skew
from sklearn.neighbors import NearestNeighbors

from diffusion.errors import UserError
from diffusion.metrics import hubness
from diffusion.metrics.hubness import DRAWS, MOST, occurrences, skewness_of


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "d", "k"), [(200, 2, 10), (300, 40, 5), (12, 3, 1)])
def test_agrees_with_scikit_learn_and_scipy(n, d, k):
    points = normals(n, d)
    rows = NearestNeighbors(n_neighbors=k).fit(points.numpy()).kneighbors(return_distance=False)
    counts = np.bincount(rows.ravel(), minlength=n)
    assert occurrences(points, k).tolist() == counts.tolist()
    found = hubness(points, k)
    assert found.skewness == pytest.approx(skew(counts), rel=1e-12)
    assert found.largest == counts.max()


def test_the_mean_of_the_counts_is_k_and_a_star_has_one_hub():
    angles = torch.arange(7, dtype=torch.float64) * 2 * math.pi / 7
    star = torch.cat([torch.zeros(1, 2, dtype=torch.float64), 10 * torch.stack((angles.cos(), angles.sin()), 1)])
    # seven points on a circle of radius 10 are 8.7 apart from one another, so the circle is stretched along an axis
    star = torch.cat([star, torch.zeros(8, 5, dtype=torch.float64)], 1)
    star[1:, 2:7] = 20 * torch.eye(7, dtype=torch.float64)[:, 2:7]
    counts = occurrences(star, 3)
    assert float(counts.double().mean()) == 3.0
    assert int(counts.argmax()) == 0


def test_skewness_grows_with_the_dimension_and_is_that_of_a_normal_sample():
    means = {}
    for d in (3, 50):  # two means of independent draws from one law; a single draw of 50 dimensions is off by a fifth
        drawn = torch.tensor([skewness_of(occurrences(normals(400, d, seed))) for seed in range(20)])
        told = torch.tensor([hubness(normals(400, d), seed=seed).of_normal for seed in range(4)])
        error = float(drawn.std()) * math.sqrt(1 / len(drawn) + 1 / (DRAWS * len(told)))
        means[d] = float(told.mean())
        assert abs(float(drawn.mean()) - means[d]) < 4 * error < 1.0
    assert means[50] > means[3] + 2.0
    # the same points in a subspace have the hubness of its dimension, below that of the dimension they are in
    flat = torch.cat([normals(400, 3), torch.zeros(400, 47, dtype=torch.float64)], 1)
    assert hubness(flat).skewness < hubness(flat).of_normal - 0.5


def test_equal_counts_have_no_skewness_and_many_points_are_cut():
    ring = torch.arange(6, dtype=torch.float64)[:, None]
    assert math.isnan(skewness_of(occurrences(ring, 5)))
    assert hubness(normals(MOST + 7, 1), 1).largest <= 2  # on a line a point is the nearest of two others at most


def test_refused():
    with pytest.raises(UserError, match="k: found 10 for 10 points; accepted: 1 to 9"):
        hubness(normals(10, 2))
    with pytest.raises(UserError, match="not finite"):
        hubness(torch.full((20, 2), float("nan")))
