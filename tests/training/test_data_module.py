"""A batch is a function of the step: its parts cover it, whoever draws them and wherever one starts."""

from collections import namedtuple
from itertools import islice

import pytest
import torch
from tiny_configs import digits_config, toy_config

from diffusion.data import ImageData, load_toy
from diffusion.errors import UserError
from diffusion.models.build import Data, DataFacts
from diffusion.training import data_module
from diffusion.training.data_module import TrainingBatches, ValidationBatches

N = 50


@pytest.fixture
def images():
    """Images that name themselves: image i holds i in its left column and 200 - i in its right one."""
    i = torch.arange(N)
    x = torch.stack((i, 200 - i), -1)[:, None, None, :].expand(-1, 1, 2, -1).to(torch.uint8).contiguous()
    split = {"train": x, "validation": x[:23], "test": x[:5]}
    labels = {f"{name}_labels": torch.arange(len(part)) % 10 for name, part in split.items()}
    data = ImageData(name="digits", **split, **labels, levels=256, num_classes=10, flip=True, provenance={})
    return Data(DataFacts("digits", (1, 2, 2), 256, 10), images=data)


def joined(parts, key):
    return torch.cat([part[key] for part in parts])


@pytest.mark.parametrize(("accumulate", "world_size"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("kind", ["images", "toy"])
def test_the_parts_make_the_whole_batch(tmp_path, images, accumulate, world_size, kind):
    toy = Data(DataFacts("moons", (2,), None, 0), toy=load_toy("moons"))
    data, make = (images, digits_config) if kind == "images" else (toy, toy_config)
    config = make(tmp_path, f"trainer.accumulate={accumulate}")
    whole = TrainingBatches(data, make(tmp_path))
    for step in (0, 5, 11):
        parts = [
            TrainingBatches(data, config, 0, rank, world_size).part(step * accumulate + micro)
            for rank in range(world_size)
            for micro in range(accumulate)
        ]
        assert {part["step"] for part in parts} == {step}
        parts.sort(key=lambda part: part["slice"])
        assert [part["slice"] for part in parts] == list(range(accumulate * world_size))
        expected = whole.part(step)
        assert expected["positions"].tolist() == list(range(8))
        for key in ("positions", "x", *(["labels"] if kind == "images" else [])):
            assert torch.equal(joined(parts, key), expected[key]), key


def test_a_label_stays_with_its_image_and_some_are_mirrored(tmp_path, images):
    batches = TrainingBatches(images, digits_config(tmp_path))
    mirrored = []
    for part in islice(batches, 30):
        left, right = part["x"][:, 0, 0, 0].long(), part["x"][:, 0, 0, 1].long()
        assert torch.equal(left + right, torch.full_like(left, 200))
        assert torch.equal(part["labels"], torch.minimum(left, right) % 10)
        mirrored += (left > right).tolist()
    assert 0.3 < sum(mirrored) / len(mirrored) < 0.7
    straight = TrainingBatches(images, digits_config(tmp_path, "data.flip=false"))
    assert all(bool((part["x"][:, 0, 0, 0] < 100).all()) for part in islice(straight, 10))


def test_an_epoch_holds_every_image_once(tmp_path, images):
    batches = TrainingBatches(images, digits_config(tmp_path, "trainer.batch_size=10", "data.flip=false"))
    seen = [int(i) for part in islice(batches, 5) for i in part["x"][:, 0, 0, 0]]
    assert sorted(seen) == list(range(N))


def test_a_later_start_goes_on_as_if_there_had_been_none_before(tmp_path, images):
    config = digits_config(tmp_path, "trainer.accumulate=2")
    early = list(islice(TrainingBatches(images, config), 9))[5:]
    late = list(islice(TrainingBatches(images, config, start=5), 4))
    for a, b in zip(early, late, strict=True):
        assert (a["step"], a["slice"]) == (b["step"], b["slice"])
        assert torch.equal(a["x"], b["x"])


def test_worker_processes_take_turns(tmp_path, images, monkeypatch):
    batches = TrainingBatches(images, digits_config(tmp_path), start=3)
    alone = list(islice(batches, 6))
    worker = namedtuple("worker", "id num_workers")
    taken = []
    for number in range(2):
        monkeypatch.setattr(data_module, "get_worker_info", lambda number=number: worker(number, 2))
        taken.append(list(islice(batches, 3)))
    together = [part for pair in zip(*taken, strict=True) for part in pair]  # a DataLoader asks them in turn
    assert [part["step"] for part in together] == [part["step"] for part in alone]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_meets_every_image_once(images, world_size):
    seen = []
    for rank in range(world_size):
        batches = ValidationBatches(images, 4, rank, world_size)
        for i in range(len(batches)):
            batch = batches[i]
            assert torch.equal(batch["x"][:, 0, 0, 0].long(), batch["positions"])
            assert torch.equal(batch["labels"], batch["positions"] % 10)
            seen += batch["positions"].tolist()
    assert sorted(seen) == list(range(23))


def test_validation_of_a_toy_is_the_same_at_every_call():
    data = Data(DataFacts("moons", (2,), None, 0), toy=load_toy("moons"))
    assert torch.equal(ValidationBatches(data, 99).x, ValidationBatches(data, 7).x)


def test_without_validation_images_there_are_no_batches(images):
    none = {"validation": images.images.validation[:0], "validation_labels": images.images.validation_labels[:0]}
    empty = ImageData(**{**vars(images.images), **none})
    assert len(ValidationBatches(Data(images.facts, images=empty), 4)) == 0


def test_images_held_on_the_device_are_the_same(tmp_path, images):
    config = digits_config(tmp_path)
    here, there = TrainingBatches(images, config), TrainingBatches(images, config, device=torch.device("cpu"))
    for step in (0, 9):
        assert torch.equal(here.part(step)["x"], there.part(step)["x"])
        assert torch.equal(here.part(step)["labels"], there.part(step)["labels"])


@pytest.mark.parametrize(("n", "batch_size", "world_size"), [(23, 4, 3), (9, 4, 2), (5, 1, 2), (3, 8, 3), (17, 1, 3)])
def test_processes_validate_equally_many_batches_none_empty(images, n, batch_size, world_size):
    some = {"validation": images.images.validation[:n], "validation_labels": images.images.validation_labels[:n]}
    data = Data(images.facts, images=ImageData(**{**vars(images.images), **some}))
    shares = [ValidationBatches(data, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    sizes = [len(share[i]["positions"]) for share in shares for i in range(len(share))]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + 1
    assert sum(sizes) == n
    with pytest.raises(UserError, match="fewer than the 99 processes"):
        ValidationBatches(data, batch_size, 0, 99)
