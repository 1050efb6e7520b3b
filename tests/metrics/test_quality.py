"""All figures from one object: they are those of the functions, and unlike references are refused."""

import pytest
import torch
from torch import nn

from diffusion.errors import UserError
from diffusion.metrics import (
    FeatureStatistics,
    GivenFeatures,
    QualityReference,
    density_coverage,
    frechet_estimate,
    image_keys,
    kernel_distance,
    precision_recall,
    quality,
    require_comparable,
)
from diffusion.numerics.random import fixed_subset


def images(n, seed, low=0, high=256):
    return torch.randint(low, high, (n, 1, 3, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


FLAT = GivenFeatures(nn.Flatten(), "pixels")
TRAIN, TEST, SAMPLES = images(120, 0), images(90, 1), images(70, 2, 30, 250)


def reference(**changes):
    given = {"images": TRAIN, "extractor": FLAT, "data": "x", "split": "train", "levels": 256, "held_out": TEST}
    return QualityReference.of(**{**given, **changes})


def flat(x):
    return x.flatten(1).float()


def test_the_figures_are_those_of_the_functions():
    found = reference().measure(SAMPLES)
    x, y = flat(SAMPLES), flat(TRAIN)
    assert found.frechet == frechet_estimate(x, FeatureStatistics.of(y), keys=image_keys(SAMPLES))
    assert found.kernel == kernel_distance(x, y)
    assert (found.precision, found.recall) == precision_recall(x, y)
    assert (found.density, found.coverage) == density_coverage(x, y)
    assert found.pixel_copies.distances.tolist() == found.feature_copies.distances.tolist()
    figures = found.figures()
    assert figures["fid"] == found.frechet.value
    assert found.to_dict()["reference"]["extractor"] == "pixels"
    assert not [key for key in reference(held_out=None).measure(SAMPLES).figures() if key.startswith("near")]


def test_copies_of_the_training_set_are_seen_as_such():
    found = reference().measure(TRAIN[:40])
    assert found.pixel_copies.share == found.feature_copies.share == 1.0
    assert found.pixel_copies.neighbours.tolist() == list(range(40))
    assert reference().measure(TRAIN).frechet.value == pytest.approx(0.0, abs=1e-6)


def test_mirrored_images_count_where_they_are_asked_for():
    mirrored = reference(flips=True)
    assert len(mirrored.features) == 240
    assert mirrored.provenance.flips
    copies = mirrored.measure(TRAIN[:20].flip(-1)).pixel_copies
    assert copies.share == 1.0
    assert copies.neighbours.tolist() == list(range(120, 140))
    assert reference().measure(TRAIN[:20].flip(-1)).pixel_copies.share < 0.2


def test_features_that_were_computed_before_are_taken():
    class Broken(nn.Module):
        def forward(self, x):
            raise AssertionError("not asked")

    features = reference().features
    given = reference(extractor=GivenFeatures(Broken(), "b"), features=features, held_out=None)
    assert torch.equal(given.statistics.mean, reference().statistics.mean)
    with pytest.raises(UserError, match="found 120 for 240 images"):
        reference(flips=True, features=features)


def test_of_large_references_rows_are_taken_in_the_fixed_order(monkeypatch):
    monkeypatch.setattr(quality, "NEIGHBOUR_IMAGES", 30)
    found = reference().measure(SAMPLES)
    assert found.kernel == kernel_distance(flat(SAMPLES), flat(TRAIN[fixed_subset(120, 30)]))
    whole = FeatureStatistics.of(flat(TRAIN))
    assert found.frechet == frechet_estimate(flat(SAMPLES), whole, keys=image_keys(SAMPLES)), "of all of them"
    assert torch.equal(quality.spread(torch.arange(10), 4), fixed_subset(10, 4))


def test_the_provenance_sees_every_part():
    base = reference().provenance
    changed = TRAIN.clone()
    changed[5, 0, 0, 0] ^= 1
    others = [
        reference(images=changed), reference(split="test"), reference(flips=True), reference(levels=255, images=images(
            120, 0, 0, 255)), reference(extractor=GivenFeatures(nn.Flatten(), "pixels", "other")), reference(data="y"),
    ]  # fmt: skip
    for key, other in zip(
        ("sha256", "split", "flips", "levels", "extractor_sha256", "data"), (o.provenance for o in others), strict=True
    ):
        with pytest.raises(UserError, match=f"not comparable, unlike .*{key} "):
            require_comparable(base, 70, other, 70)
    with pytest.raises(UserError, match=r"unlike numbers of samples \(70, 71\)"):
        require_comparable(base, 70, base, 71)
    require_comparable(base, 70, reference().provenance, 70)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (torch.zeros(9, 1, 4, 3, dtype=torch.uint8), r"found images of \(1, 4, 3\); the reference's are \(1, 3, 4\)"),
        (SAMPLES[:5], "found 5; at least 6"),
    ],
    ids=["shape", "few"],
)
def test_samples_that_do_not_fit_are_refused(samples, words):
    with pytest.raises(UserError, match=words):
        reference().measure(samples)


def test_levels_beyond_the_references_are_refused():
    few = reference(levels=17, images=images(50, 0, 0, 17), held_out=None)
    with pytest.raises(UserError, match=r"found level 2.*must be below 17"):
        few.measure(SAMPLES)
