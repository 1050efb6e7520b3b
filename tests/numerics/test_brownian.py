"""The noise of a path: exact law on every grid, one path for all grids, nothing of the batch."""

import math

import pytest
import torch
from laws import F64, f64

from diffusion.errors import UserError
from diffusion.numerics import brownian, random
from diffusion.numerics.brownian import GridNoise, Weights
from diffusion.numerics.random import Noise, path_normal


def _noise(n=3, shape=(5,), seed=0, start=0, dtype=F64):
    return Noise(seed, torch.arange(start, start + n), shape, dtype)


def _dense(weights):
    """The weights of every row over the nodes of all rows."""
    nodes = sorted(set(weights.nodes.flatten().tolist()))
    dense = torch.zeros(len(weights.nodes), len(nodes), dtype=F64)
    for row, (keys, values) in enumerate(zip(weights.nodes.tolist(), weights.weights.tolist(), strict=True)):
        for key, value in zip(keys, values, strict=True):
            dense[row, nodes.index(key)] += value
    return dense


GRIDS = {
    "even": torch.linspace(-10.3, 9.1, 41, dtype=F64),
    "uneven": torch.linspace(0.1, 1.0, 30, dtype=F64) ** 3 * 40 - 7.7,
    "long steps": torch.linspace(-44.0, 39.0, 8, dtype=F64),
    "short steps": torch.linspace(-3e-4, 1e-3, 12, dtype=F64),
    "far out": torch.linspace(-30000.0, 30000.0, 5, dtype=F64),
}


@pytest.mark.parametrize("clock", GRIDS.values(), ids=GRIDS)
def test_steps_are_exactly_independent_standard_normals(clock):
    """The covariance of the steps' noises, from the weights: no Monte Carlo."""
    dense = _dense(GridNoise.along(_noise(), clock).steps)
    torch.testing.assert_close(dense @ dense.T, torch.eye(len(dense), dtype=F64), rtol=0, atol=1e-8)


def test_a_stretch_without_noise_takes_none_from_its_neighbours():
    clock = f64([-2.0, -1.0, -1.0, -1.0, 0.5])
    weights = GridNoise.along(_noise(), clock).steps
    squares = weights.weights.square().sum(1)
    torch.testing.assert_close(squares, f64([1.0, 0.0, 0.0, 1.0]))
    without = GridNoise.along(_noise(), clock[[0, 1, 4]])
    for step, same in ((0, 0), (3, 1)):
        assert torch.equal(GridNoise.along(_noise(), clock)(step), without(same))


@pytest.mark.parametrize("parts", [2, 4, 32])
def test_a_finer_grid_cuts_the_same_path(parts):
    """N(a, c) = exp(-(c - b) / 2) N(a, b) + N(b, c): exact for points of the lattice."""
    coarse, fine = (torch.arange(-6.0, 6.1, step, dtype=F64) for step in (2.0, 2.0 / parts))
    whole, part = GridNoise.along(_noise(), coarse), GridNoise.along(_noise(), fine)
    h = 2.0 / parts
    for step in range(len(coarse) - 1):
        total = torch.zeros(3, 5, dtype=F64)
        for j in range(parts):
            total = math.exp(-h / 2) * total + math.sqrt(-math.expm1(-h)) * part(parts * step + j)
        torch.testing.assert_close(total, math.sqrt(-math.expm1(-2.0)) * whole(step), rtol=1e-6, atol=1e-6)


def test_rounding_to_the_lattice_is_finer_than_the_step():
    """Grids off the lattice: the noise of a stretch differs by the noise of what its ends were moved by."""
    for h in (1.0, 0.1):
        shifted = torch.arange(20, dtype=F64) * h + 0.0123
        points = brownian.lattice(shifted, torch.full_like(shifted, h))
        off = points.double() * 2.0**-30 - 2.0**15 - shifted
        assert float(off.abs().max()) <= h**2 / 32
        assert len(set(points.tolist())) == 20


def test_a_row_depends_on_its_own_index_only():
    clock = GRIDS["even"]
    whole = GridNoise.along(_noise(64), clock)(7)
    assert torch.equal(GridNoise.along(_noise(1, start=13), clock)(7)[0], whole[13])
    assert not torch.isclose(GridNoise.along(_noise(64, seed=1), clock)(7), whole).any()
    single = GridNoise.along(_noise(64, dtype=torch.float32), clock)(7)
    assert torch.equal(single, whole.float())


def test_many_normals_are_drawn_in_parts(monkeypatch):
    whole = GridNoise.along(_noise(), GRIDS["even"])(3)
    monkeypatch.setattr(brownian, "_AT_ONCE", 40)
    assert torch.equal(GridNoise.along(_noise(), GRIDS["even"])(3), whole)


@pytest.mark.parametrize(("kept", "ahead"), [(0, 1), (40, 1), (2**24, 1), (2**24, 3), (0, 32)])
def test_what_is_at_hand_changes_no_bit(monkeypatch, kept, ahead):
    """Steps in order, again, and out of order, against the sum over the step's nodes in one draw."""
    monkeypatch.setattr(brownian, "_KEPT", kept)
    monkeypatch.setattr(random, "_AHEAD", ahead)
    noise = GridNoise.along(_noise(), GRIDS["even"])
    for step in (3, 4, 5, 6, 6, 30, 4):
        used = noise.steps.weights[step].abs() > 1e-9
        weights = Weights(noise.steps.nodes[step, used][None], noise.steps.weights[step, used][None])
        assert torch.equal(noise(step), brownian.draw(noise.noise, noise.noise.indices, weights))
        assert ahead > 1 or sum(z.numel() for z in noise.at_hand.values()) <= kept


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_each_row_its_own_interval(shape):
    noise = _noise(2, shape)
    points = brownian.lattice(f64([-1.0, 0.25, 3.0]), f64([1.0, 1.0, 1.0]))
    both = brownian.draw(noise, noise.indices, Weights.between(points[[0, 1]], points[[1, 2]]))
    for row in (0, 1):
        one = Weights.between(points[[row]], points[[row + 1]])
        alone = brownian.draw(noise, noise.indices[[row]], one)[0]
        torch.testing.assert_close(both[row], alone, rtol=1e-12, atol=1e-12)
        assert both.shape == (2, *shape)


def test_readings_beyond_the_tree_are_refused():
    with pytest.raises(UserError, match="eta: too large"):
        GridNoise.along(_noise(), f64([0.0, 1.0, 4e4]))


def test_nodes_beyond_32_bits_have_their_own_normals():
    rows = torch.zeros(4, dtype=torch.int64)
    nodes = torch.tensor([5, 5 + 2**32, 5 + 2**40, 5 + 2**46])
    z = path_normal(0, rows, nodes, (64,))
    assert z.unique().numel() == z.numel()
    assert torch.equal(path_normal(0, rows[:1], nodes[2:3], (64,))[0], z[2])
