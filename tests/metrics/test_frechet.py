"""The Frechet distance against closed forms, scipy's square root and torchmetrics; its errors against repeats."""

import warnings

import numpy as np
import pytest
import torch
from scipy import linalg

from diffusion.errors import UserError
from diffusion.metrics import FeatureStatistics, frechet_distance, frechet_estimate, image_keys, matrix_sqrt


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def law(mean, covariance):
    """Statistics that say exactly this."""
    count = 1001
    return FeatureStatistics(count, mean, covariance * (count - 1))


def covariance(d, rank, seed=0):
    factor = normals(d, rank, seed)
    return factor @ factor.T


@pytest.mark.parametrize("rank", [6, 3, 1])
def test_the_square_root_is_scipys(rank):
    matrix = covariance(6, rank)
    root = matrix_sqrt(matrix)
    torch.testing.assert_close(root @ root, matrix, atol=1e-12, rtol=0)
    if rank == 6:
        torch.testing.assert_close(root, torch.from_numpy(linalg.sqrtm(matrix.numpy()).real), atol=1e-10, rtol=0)


def test_commuting_normals_have_the_closed_form():
    a, b = torch.tensor([4.0, 1.0, 0.0, 2.0]).double(), torch.tensor([1.0, 9.0, 5.0, 0.0]).double()
    mean = torch.tensor([1.0, -2.0, 0.5, 0.0]).double()
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    rotation = torch.linalg.qr(normals(4, 4)).Q
    p = law(torch.zeros(4).double(), rotation @ a.diag() @ rotation.T)
    q = law(rotation @ mean, rotation @ b.diag() @ rotation.T)
    assert frechet_distance(p, q) == pytest.approx(expected, abs=1e-6)  # a singular law: sqrt of rounding
    regular = law(torch.zeros(4).double(), rotation @ (a + 1).diag() @ rotation.T)
    exact = float(mean.square().sum() + ((a + 1).sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(regular, q) == pytest.approx(exact, abs=1e-6)


def test_general_normals_agree_with_the_product_of_covariances():
    p, q = law(normals(1, 8, 1)[0], covariance(8, 8, 2)), law(normals(1, 8, 3)[0], covariance(8, 8, 4))
    product = linalg.sqrtm((p.covariance @ q.covariance).numpy()).real
    expected = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * np.trace(product)
    assert frechet_distance(p, q) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(q, p) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(p, p) == pytest.approx(0.0, abs=1e-9)


def test_rank_deficient_sets_are_measured():
    few, other = FeatureStatistics.of(normals(5, 40)), FeatureStatistics.of(normals(7, 40, 1))
    found = frechet_distance(few, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        product = linalg.sqrtm((few.covariance @ other.covariance).numpy())
    rest = (few.mean - other.mean).square().sum() + few.covariance.trace() + other.covariance.trace()
    assert found == pytest.approx(float(rest) - 2 * np.trace(product).real, rel=1e-5)


def test_torchmetrics_says_the_same():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double() / 255

    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, high, (300, 3, 2, 2), generator=generator).to(torch.uint8) for high in (256, 180))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = FrechetInceptionDistance(feature=Flat(), normalize=False).set_dtype(torch.float64)
        theirs.update(real, real=True)
        theirs.update(fake, real=False)
        expected = float(theirs.compute())
    ours = frechet_distance(FeatureStatistics.of(Flat()(fake)), FeatureStatistics.of(Flat()(real)))
    assert ours == pytest.approx(expected, rel=1e-9)


def test_the_error_is_that_of_repeats_and_the_correction_takes_the_bias():
    d, n = 6, 300
    reference = law(torch.zeros(d).double(), torch.eye(d).double())
    scale = torch.tensor([1.5, 1.0, 1.0, 1.0, 0.7, 1.0]).double()
    true = float((scale - 1).square().sum())
    found = [frechet_estimate(normals(n, d, seed) * scale, reference) for seed in range(80)]
    values, corrected = (torch.tensor([getattr(f, key) for f in found]) for key in ("value", "corrected"))
    errors = torch.tensor([f.std_error for f in found])
    sem = float(corrected.std()) / len(found) ** 0.5
    assert float(values.mean()) - true > 6 * sem, "biased upwards"
    assert abs(float(corrected.mean()) - true) < 4 * sem
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.3)


def test_the_estimate_holds_the_plain_distance():
    features, reference = normals(101, 5), FeatureStatistics.of(normals(50, 5, 1))
    found = frechet_estimate(features, reference)
    assert found.value == pytest.approx(frechet_distance(FeatureStatistics.of(features), reference), rel=1e-10)
    alone = frechet_estimate(features, reference, groups=1)
    assert alone.value == pytest.approx(found.value)
    assert alone.std_error != alone.std_error, "unknown"


def test_one_feature_has_no_covariance():
    with pytest.raises(UserError, match="found 1; a covariance needs at least 2"):
        frechet_estimate(normals(1, 3), FeatureStatistics.of(normals(9, 3)))
    with pytest.raises(UserError, match="dimensions 3 and 4"):
        frechet_distance(FeatureStatistics.of(normals(9, 3)), FeatureStatistics.of(normals(9, 4)))


def in_groups(n, seed=0):
    """Features of four classes, one after the other, and in a random order."""
    classes = torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed)).sort().values
    features = normals(n, 6, seed) + 4 * classes[:, None].double()
    return features, features[torch.randperm(n, generator=torch.Generator().manual_seed(1))]


KEYS = ("value", "std_error", "corrected")


def test_neither_the_order_of_the_files_nor_rounding_changes_anything():
    reference, features = FeatureStatistics.of(in_groups(500, 1)[0]), in_groups(360)[0]
    images = torch.randint(256, (360, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:90] = images[0]  # a model that repeats itself
    features[:90] = features[0]
    ordered = frechet_estimate(features, reference, keys=image_keys(images))
    mixed = torch.randperm(360, generator=torch.Generator().manual_seed(1))
    shuffled = frechet_estimate(features[mixed], reference, keys=image_keys(images[mixed]))
    jitter = 1 + 1e-7 * torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).double()
    rounded = frechet_estimate(features * jitter, reference, keys=image_keys(images))
    for key in KEYS:
        assert getattr(shuffled, key) == pytest.approx(getattr(ordered, key), rel=1e-6), key
        assert getattr(rounded, key) == pytest.approx(getattr(ordered, key), rel=1e-4), key
    with pytest.raises(UserError, match="keys: found 3 for 360 features"):
        frechet_estimate(features, reference, keys=["a", "b", "c"])


def test_without_images_the_groups_go_by_a_fixed_permutation():
    reference = FeatureStatistics.of(in_groups(500, 1)[0])
    features = in_groups(360)[0]
    found = frechet_estimate(features, reference)
    assert abs(found.corrected) < 3 * found.std_error < 6, "groups of one class each would have -6.7 and 4.4"
    jitter = 1 + 1e-7 * torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).double()
    for key in KEYS:
        assert getattr(frechet_estimate(features * jitter, reference), key) == pytest.approx(
            getattr(found, key), rel=1e-4
        ), key


def test_the_error_of_a_collapsed_model_is_that_of_repeats():
    """Samples of ten values: equal ones in one group would be taken for a spread that is not there."""
    places, reference = normals(10, 3), FeatureStatistics.of(normals(400, 3, 1))

    def drawn(seed):
        rows = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(seed))
        return frechet_estimate(places[rows], reference)

    found = [drawn(seed) for seed in range(60)]
    errors, values = (torch.tensor([getattr(f, key) for f in found]) for key in ("std_error", "value"))
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.35)


@pytest.mark.parametrize(("ratio", "left"), [(4, 0.08), (8, 0.04)])
def test_the_correction_takes_the_bias_from_four_samples_a_feature_on(ratio, left):
    """Equal variances, the worst case, a distance of 0: what is left of the bias, and none where it would be more."""
    d = 32
    reference = law(torch.zeros(d).double(), torch.eye(d).double())
    found = [frechet_estimate(normals(ratio * d, d, seed), reference) for seed in range(12)]
    bias, corrected = (sum(getattr(f, key) for f in found) / 12 for key in ("value", "corrected"))
    assert abs(corrected) < left * bias
    few = frechet_estimate(normals(4 * d - 1, d), reference)
    assert few.corrected != few.corrected, "withheld"
    assert few.std_error > 0
