"""Copies of training images are counted one by one: planted ones are all found, and fresh images are none."""

import pytest
import torch

from diffusion.data import load_images
from diffusion.metrics import GivenFeatures, QualityReference, find_copies

DIGITS = load_images("digits")
TRAIN, FRESH = DIGITS.train, DIGITS.test


def planted(share, seed, change=lambda images: images):
    """Fresh images, some of them training images (after `change`) instead: the samples, their places and the rows."""
    generator = torch.Generator().manual_seed(seed)
    samples, count = FRESH.clone(), max(1, round(share * len(FRESH)))
    places = torch.randperm(len(FRESH), generator=generator)[:count]
    rows = torch.randperm(len(TRAIN), generator=generator)[:count]
    samples[places] = change(TRAIN[rows])
    return samples, dict(zip(places.tolist(), rows.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_one_in_a_hundred_is_always_found_with_its_image(seed):
    samples, rows = planted(0.01, seed)
    found = find_copies(samples, TRAIN)
    assert {copy.sample: copy.image for copy in found} == rows
    assert all(copy.exact and not copy.mirrored and copy.own > 0 for copy in found)


def test_fresh_images_are_no_copies():
    assert find_copies(FRESH, TRAIN, mirrored=True) == []
    assert find_copies(DIGITS.validation, TRAIN) == []


def test_a_little_noise_hides_no_copy():
    generator = torch.Generator().manual_seed(0)

    def one_pixel_in_eight(images):
        moved = (torch.rand(images.shape, generator=generator) < 0.125).int()
        return (images.int() + moved).clamp(0, 16).to(torch.uint8)

    samples, rows = planted(0.2, 0, one_pixel_in_eight)
    found = find_copies(samples, TRAIN)
    assert {copy.sample: copy.image for copy in found} == rows
    assert sum(copy.exact for copy in found) < len(rows)
    for copy in found:
        difference = samples[copy.sample].double() - TRAIN[copy.image].double()
        assert copy.distance == pytest.approx(float(difference.square().mean().sqrt()))
        assert copy.distance < copy.own / 3


def test_mirrored_copies_count_where_mirroring_is_an_augmentation():
    samples, rows = planted(0.05, 1, lambda images: images.flip(-1))
    found = find_copies(samples, TRAIN, mirrored=True)
    assert {copy.sample: copy.image for copy in found if copy.mirrored} == rows
    assert not [copy for copy in find_copies(samples, TRAIN) if copy.exact]


def test_training_images_that_are_there_twice_do_not_hide_near_copies():
    twice = torch.cat((TRAIN[:300], TRAIN[:300], TRAIN[:300]))
    sample = TRAIN[7:8].clone()
    sample[0, 0, 0, 0] += 1
    (copy,) = find_copies(sample, twice)
    assert (copy.image % 300, copy.exact) == (7, False)
    assert copy.own == pytest.approx(find_copies(TRAIN[7:8], TRAIN[:300])[0].own)
    assert find_copies(sample, TRAIN[7:8]) == [], "of equal images nothing says what is near"


def test_they_are_among_the_figures():
    samples, rows = planted(0.01, 3)
    flat = GivenFeatures(torch.nn.Flatten(), "pixels")
    reference = QualityReference.of(TRAIN, flat, "digits", "train", 17)
    found = reference.measure(samples)
    assert (found.figures()["copies_exact"], found.figures()["copies_near"]) == (len(rows), 0)
    assert reference.measure(FRESH).figures()["copies_exact"] == 0
    other = QualityReference.of(TRAIN, flat, "digits", "test", 17).measure(samples)
    assert other.copies is None, "of what nobody was trained on"
    assert "copies_exact" not in other.figures()
