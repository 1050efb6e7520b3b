"""Exact nearest neighbours against scipy's tree and hand-made cases, in chunks of any size."""

import pytest
import torch
from scipy.spatial import cKDTree

from diffusion.numerics import nearest


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [2**22, 150])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_they_are_those_of_a_tree(monkeypatch, block, offset):
    monkeypatch.setattr(nearest, "_BLOCK", block)
    queries, points = normals(40, 3) + offset, normals(70, 3, 1) + offset
    expected, rows = cKDTree(points.numpy()).query(queries.numpy(), k=4)
    distances, found = nearest.nearest(queries, points, 4)
    assert found.tolist() == rows.tolist()
    torch.testing.assert_close(distances, torch.from_numpy(expected), rtol=1e-9, atol=0)
    expected, rows = cKDTree(points.numpy()).query(points.numpy(), k=4)
    distances, found = nearest.nearest_others(points, 3)
    assert found.tolist() == rows[:, 1:].tolist()
    torch.testing.assert_close(distances, torch.from_numpy(expected[:, 1:].copy()), rtol=1e-9, atol=0)


def test_a_twin_is_another_row_and_a_query_may_be_a_point():
    points = torch.tensor([[0.0], [0.0], [5.0]])
    assert nearest.nearest_others(points, 1)[0][:2, 0].tolist() == [0.0, 0.0]
    assert nearest.nearest_others(points, 1)[1][0, 0] == 1
    assert nearest.nearest(points, points)[0][:, 0].tolist() == [0.0, 0.0, 0.0]


def test_tables_hold_all_pairs(monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", 30)
    queries, points = normals(11, 2), normals(9, 2, 1)
    chunks = list(nearest.square_tables(queries, points))
    assert len(chunks) == 4
    assert torch.cat([rows for rows, _, _ in chunks]).tolist() == list(range(11))
    squares = torch.cat([table for _, table, _ in chunks])
    torch.testing.assert_close(squares, torch.cdist(queries, points).square(), rtol=1e-9, atol=1e-12)
