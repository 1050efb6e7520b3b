"""Batch order: a permutation per epoch, a function of (seed, step), the same for any number of processes."""

import pytest
import torch

from diffusion.data import augment, batch_indices, global_positions
from diffusion.errors import UserError


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 13), (1, 3)])
def test_each_epoch_visits_every_image_once(n: int, batch_size: int) -> None:
    epochs = 4
    steps = -(-epochs * n // batch_size)
    order = torch.cat([batch_indices(3, step, batch_size, n) for step in range(steps)])[: epochs * n]
    for epoch in order.reshape(epochs, n):
        assert epoch.sort().values.equal(torch.arange(n))


def test_order_differs_between_epochs_and_seeds() -> None:
    n = 100
    first, second = batch_indices(0, 0, n, n), batch_indices(0, 1, n, n)
    other = batch_indices(1, 0, n, n)
    assert not first.equal(second)
    assert not first.equal(other)
    assert not first.equal(torch.arange(n))


def test_order_is_uniform_over_permutations() -> None:
    # 3! orders of three images in 3,000 epochs: chi-squared with 5 degrees of freedom is above 20.5 once in 1,000.
    codes = batch_indices(0, 0, 9_000, 3).reshape(-1, 3) @ torch.tensor([9, 3, 1])
    counts = codes.unique(return_counts=True)[1].double()
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5


def test_a_batch_is_a_function_of_its_step_alone() -> None:
    forward = [batch_indices(5, step, 6, 20) for step in range(12)]
    for step in (11, 0, 7, 3):
        assert batch_indices(5, step, 6, 20).equal(forward[step])


def test_order_does_not_depend_on_the_batch_size() -> None:
    small = torch.cat([batch_indices(5, step, 4, 20) for step in range(15)])
    large = torch.cat([batch_indices(5, step, 12, 20) for step in range(5)])
    assert small.equal(large)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_processes_share_the_batch_in_order(world_size: int) -> None:
    whole = batch_indices(0, 2, 12, 17)
    parts = [batch_indices(0, 2, 12, 17, rank, world_size) for rank in range(world_size)]
    assert torch.cat(parts).equal(whole)
    positions = [global_positions(12, rank, world_size) for rank in range(world_size)]
    assert torch.cat(positions).equal(torch.arange(12))


def test_unequal_shares_and_empty_data_are_refused() -> None:
    with pytest.raises(UserError, match="10 cannot be shared equally by 4"):
        batch_indices(0, 0, 10, 20, 0, 4)
    with pytest.raises(UserError, match="no training image"):
        batch_indices(0, 0, 10, 0)


def test_flips_are_keyed_by_position_and_step() -> None:
    images = torch.arange(2_000 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(2_000, 1, 1, 3)
    positions = torch.arange(2_000)
    out = augment(images, 0, 4, positions, flip=True)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (out == images).flatten(1).all(1)).all()
    assert abs(mirrored.double().mean().item() - 0.5) < 0.04  # 3.6 standard deviations
    rows = torch.tensor([1500, 3, 77])
    assert augment(images[rows], 0, 4, positions[rows], flip=True).equal(out[rows])
    assert not augment(images, 0, 5, positions, flip=True).equal(out)
    assert not augment(images, 1, 4, positions, flip=True).equal(out)
    assert augment(images, 0, 4, positions, flip=False) is images
