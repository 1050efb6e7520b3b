"""Statistics gathered in chunks are those of the whole; files say where they come from; unlike ones are refused."""

from dataclasses import replace
from functools import reduce

import pytest
import torch

from diffusion.errors import UserError
from diffusion.metrics import FeatureStatistics, Provenance, frechet_distance

PROVENANCE = Provenance("digits", "train", 40, "a" * 64, False, (1, 8, 8), 17, "digits", "b" * 64)


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(40,), (1, 39), (7, 13, 20), (1,) * 40])
def test_chunks_merge_to_the_whole(sizes):
    z = normals(40, 5) + 1e6  # far from zero, where sums of squares would lose their digits
    merged = reduce(FeatureStatistics.merge, map(FeatureStatistics.of, z.split(sizes)))
    assert merged.count == 40
    torch.testing.assert_close(merged.mean, z.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.covariance, torch.cov(z.T), rtol=1e-8, atol=1e-9)


def test_the_order_of_merging_does_not_matter():
    a, b, c = (FeatureStatistics.of(normals(n, 4, n)) for n in (3, 9, 20))
    left, right = a.merge(b).merge(c), c.merge(b.merge(a))
    torch.testing.assert_close(left.covariance, right.covariance, rtol=1e-12, atol=1e-13)


def test_float32_features_are_summed_in_float64():
    z = normals(1000, 3).float() + 3000
    torch.testing.assert_close(FeatureStatistics.of(z).covariance, torch.cov(z.double().T), rtol=1e-12, atol=1e-12)


def test_a_file_keeps_values_and_provenance(tmp_path):
    statistics = FeatureStatistics.of(normals(30, 4), PROVENANCE)
    statistics.save(tmp_path / "s.safetensors")
    read = FeatureStatistics.load(tmp_path / "s.safetensors")
    assert (read.count, read.provenance) == (30, PROVENANCE)
    assert torch.equal(read.mean, statistics.mean)
    assert torch.equal(read.scatter, statistics.scatter)
    bad = bytearray((tmp_path / "s.safetensors").read_bytes())
    bad[-1] ^= 1
    (tmp_path / "s.safetensors").write_bytes(bytes(bad))
    with pytest.raises(UserError, match="does not match its checksum"):
        FeatureStatistics.load(tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="no such statistics file"):
        FeatureStatistics.load(tmp_path / "absent.safetensors")


def test_a_model_file_holds_no_statistics(tmp_path):
    from diffusion.storage.tensor_files import save_model

    save_model(tmp_path / "m.safetensors", {"w": torch.zeros(2)}, "")
    with pytest.raises(UserError, match="a statistics file of this package is accepted"):
        FeatureStatistics.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extractor_sha256": "c" * 64}, r"extractor_sha256 \(bbbbbbbbbbbb, cccccccccccc\)"),
        ({"extractor": "inception"}, r"extractor \(digits, inception\)"),
        ({"levels": 256}, r"levels \(17, 256\)"),
        ({"shape": (3, 8, 8)}, r"shape \(\(1, 8, 8\), \(3, 8, 8\)\)"),
        ({"levels": 256, "extractor": "x"}, r"levels .*extractor"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_unlike_features_are_refused(change, words):
    z = normals(20, 3)
    a = FeatureStatistics.of(z, PROVENANCE)
    with pytest.raises(UserError, match="not comparable, unlike " + words):
        frechet_distance(a, FeatureStatistics.of(z, replace(PROVENANCE, **change)))
    # samples and their reference are of different data
    assert frechet_distance(a, FeatureStatistics.of(z, replace(PROVENANCE, data="x", sha256="d" * 64))) < 1e-9
