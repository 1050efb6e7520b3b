"""Randomness is a function of (seed, index, step): known answers, laws of the draws, independence of the batch."""

import hashlib
import os
import subprocess
import sys

import pytest
import scipy.stats
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from diffusion.numerics import random
from diffusion.numerics.random import fixed_order, fixed_subset


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors that Random123 publishes for philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_matches_the_published_vectors(counter, key, expected):
    for shape in ((1,), ()):
        words = random.philox4x32(tuple(torch.tensor(c).reshape(shape) for c in counter), key)
        assert tuple(int(w) for w in words) == expected
        assert {w.shape for w in words} == {shape}


def test_philox_is_the_same_of_few_blocks_and_of_many():
    """Arrays of NumPy compute few, tensors many, graphs of the compiler all: as integers of any length do."""
    counter = tuple(random.philox4x32(tuple(torch.tensor([[i], [c]]) for c in range(4)), (5, 6))[i] for i in range(4))
    key = (0xFEDCBA98, 0x76543210)
    words = [torch.stack(random.philox4x32(counter, key))]
    rows = random._FEW // 2 + 1
    many = random.philox4x32(tuple(c.expand(-1, rows) for c in counter), key)
    words += [torch.stack(many)[:, :, :1], torch.stack(many)[:, :, -1:], torch.stack(random._rounds(counter, key))]
    for row in range(2):
        expected = random._rounds(tuple(int(c[row]) for c in counter), key)
        for found in words:
            assert found.dtype == torch.int64
            assert found[:, row, 0].tolist() == list(expected)


def test_a_function_that_draws_can_be_transformed_and_traced():
    x = torch.ones(3, 4)

    def draw(x, indices):
        return x * random.normal(0, indices, 0, (4,))

    expected = draw(x, torch.arange(3))
    assert torch.equal(torch.func.grad(lambda x: draw(x, torch.arange(3)).sum())(x), expected)
    traced = make_fx(draw)(x, torch.arange(3))
    assert torch.equal(traced(x, torch.arange(3) + 7), draw(x, torch.arange(3) + 7)), "the draws are no constants"


@pytest.mark.parametrize("draw", [random.normal, random.uniform, random.rademacher])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_depends_on_its_own_index_only(draw, dtype):
    indices = torch.arange(64)
    whole = draw(3, indices, 5, (3, 5, 7), dtype=dtype)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(3, order, 5, (3, 5, 7), dtype=dtype), whole[order])
    for i in (0, 13, 63):
        assert torch.equal(draw(3, indices[i : i + 1], 5, (3, 5, 7), dtype=dtype)[0], whole[i])


def test_seed_index_step_and_stream_all_matter():
    i = torch.arange(4)
    base = random.normal(0, i, 0, (8,))
    for other in (
        random.normal(1, i, 0, (8,)),
        random.normal(2**40, i, 0, (8,)),
        random.normal(0, i + 4, 0, (8,)),
        random.normal(0, i, 1, (8,)),
        random.normal(0, i, 0, (8,), stream=1),
    ):
        assert not torch.isclose(base, other).any()


def test_draws_follow_their_law():
    i = torch.arange(500)
    z = random.normal(7, i, 2, (200,), dtype=torch.float64).flatten().numpy()
    u = random.uniform(7, i, 2, (200,), dtype=torch.float64).flatten().numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > 0.01
    assert scipy.stats.kstest(u, "uniform").pvalue > 0.01
    pairs = random.normal(7, i, 2, (200,), dtype=torch.float64)
    assert abs(torch.corrcoef(pairs.T[:2])[0, 1]) < 4 / 500**0.5
    signs = random.rademacher(7, i, 2, (200,))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / (500 * 200) ** 0.5


def test_uniform_stays_inside_the_open_interval_in_float32():
    u = random.uniform(0, torch.arange(4000), 0, (1000,))
    assert u.min() > 0
    assert u.max() < 1


@pytest.mark.parametrize("rows", [1, 7, 5000])
def test_noise_drawn_for_steps_to_come_is_that_of_each_step(rows):
    """In order, out of order and again; 5,000 samples are drawn step by step."""
    indices = 3 + torch.arange(rows)
    noise = random.Noise(9, indices, (2, 3))
    assert (noise.steps_at_once == 1) == (rows == 5000)
    for step in (0, 1, 2, 3, 40, 39, 38, 0):
        assert torch.equal(noise(step), random.normal(9, indices, step, (2, 3), random.STREAM_SOLVER))


def test_the_fixed_order_is_that_of_the_digests_and_nested():
    order = fixed_order(1000)
    digests = [hashlib.sha256(str(row).encode()).hexdigest() for row in order.tolist()]
    assert digests == sorted(digests)
    assert sorted(order.tolist()) == list(range(1000))
    some = torch.tensor([700, 3, 41, 999, 12])
    place = {row: at for at, row in enumerate(order.tolist())}
    assert [place[row] for row in some[fixed_order(some)].tolist()] == sorted(place[row] for row in some.tolist())
    assert set(fixed_subset(1000, 10).tolist()) < set(fixed_subset(1000, 11).tolist())
    assert fixed_subset(5, None).tolist() == fixed_subset(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_no_class_of_an_ordered_or_alternating_set_is_left_out():
    for labels in (torch.arange(1000) // 100, torch.arange(1000) % 10):
        counts = labels[fixed_order(1000)[:200]].bincount(minlength=10)
        assert 8 <= int(counts.min()) <= int(counts.max()) <= 34, "20 each, but for chance"


def test_the_kernel_gives_the_same_words():
    """By Triton's interpreter, which has to be asked for before the kernel is made: in a process of its own."""
    pytest.importorskip("triton")
    program = """
from itertools import cycle
import torch
from diffusion.numerics import random
from diffusion.numerics.philox_kernel import words

index = torch.tensor([0, 1, 5, 2**40 + 3, 2**48 - 1, 123456])
rows = torch.arange(6) * 77
seeds = cycle((0, 7, 2**63 + 12345, -5))
for step in (torch.tensor([0]), torch.tensor([2**31 + 5]), rows):
    for stream in (torch.tensor([4]), random.STREAM_PATH | rows):
        seed = next(seeds)
        expected = random._words(seed, index, step, 1030, stream, None)
        for a, b in zip(words(seed, index, step, stream, 258), expected, strict=True):
            assert torch.equal(a, b), (seed, step, stream)
assert words(0, index[:0], rows[:1], rows[:1], 3)[0].shape == (0, 3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_uniform_is_that_of_the_tensor():
    for seed, index, step, stream in ((0, 0, 0, 0), (7, 2**40 + 3, 5, 3), (2**63 + 1, 1, 2**31, 13), (-4, 9, 1, 2)):
        expected = random.uniform(seed, torch.tensor([index]), step, (), stream, torch.float64)
        assert random.one_uniform(seed, index, step, stream) == float(expected)
