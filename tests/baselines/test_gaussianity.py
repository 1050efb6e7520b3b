import json
import math

import pytest
import torch
from scipy import stats

from diffusion.baselines.gaussianity import gaussianity
from diffusion.errors import UserError
from diffusion.metrics import hubness


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_agrees_with_scipy():
    z = normal(400, 3) * torch.tensor([1.0, 1.3, 0.6]) + torch.tensor([0.0, 0.2, -0.1])
    report = gaussianity(z)
    for i, column in enumerate(z.T.numpy()):
        ks = stats.kstest(column, "norm")
        assert float(report.ks[i]) == pytest.approx(ks.statistic, abs=1e-12)
        assert float(report.ks_p_value[i]) == pytest.approx(ks.pvalue, abs=0.01)
        assert float(report.skewness[i]) == pytest.approx(stats.skew(column), abs=1e-12)
        assert float(report.excess_kurtosis[i]) == pytest.approx(stats.kurtosis(column), abs=1e-12)
    torch.testing.assert_close(report.mean, z.mean(0))
    torch.testing.assert_close(report.std, z.std(0, correction=0))
    correlation = torch.corrcoef(z.T).fill_diagonal_(0.0).abs().max()
    assert report.largest_correlation == pytest.approx(float(correlation))


def test_normal_codes_pass_and_others_do_not():
    passed = gaussianity(normal(2000, 4))
    assert (passed.ks_p_value > 0.01).all()
    assert abs(passed.negentropy) < 0.15
    assert passed.normal_entropy == pytest.approx(2 * math.log(2 * math.pi * math.e))
    uniform = gaussianity((torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)) - 0.5) * math.sqrt(12))
    assert (uniform.ks_p_value < 1e-3).all()
    # 4 times the negentropy of a uniform law of unit variance
    expected = 4 * 0.5 * (math.log(2 * math.pi * math.e) - math.log(12))
    assert uniform.negentropy == pytest.approx(expected, abs=0.35)
    mixed = normal(2000, 2)
    mixed[:, 1] = mixed[:, 0] * 0.8 + mixed[:, 1] * 0.6
    assert gaussianity(mixed).largest_correlation == pytest.approx(0.8, abs=0.05)


def test_plain_values():
    values = json.loads(json.dumps(gaussianity(normal(50, 2)).to_dict()))
    assert values["count"] == 50
    assert len(values["ks"]) == 2
    assert values["negentropy"] == pytest.approx(values["entropy_of_normal_sample"] - values["entropy"])


def test_bad_codes_are_refused():
    with pytest.raises(UserError, match="codes: found 3; needs more than 3"):
        gaussianity(normal(3, 2))
    flat = normal(50, 3)
    flat[:, 1] = 0.5
    with pytest.raises(UserError, match="dimension 1 has no variance"):
        gaussianity(flat)


def test_what_is_told_is_of_the_worst_dimension():
    z = normal(500, 3)
    z[:, 1] = z[:, 1].exp()
    report = gaussianity(z)
    summary = report.summary()
    assert summary["codes, dimensions"][0] == "500, 3"
    assert summary["largest |skewness|"][0] == f"{float(report.skewness[1]):.3f}"
    assert summary["largest |mean|"][0] == f"{float(z[:, 1].mean()):.3f}"
    assert summary["standard deviation"] == (f"{report.std.min():.3f} to {float(report.std[1]):.3f}", "1")
    assert summary["entropy, nats (d/2 log 2 pi e for the prior)"][1] == f"{1.5 * math.log(2 * math.pi * math.e):.3f}"
    assert report.hubness == hubness(z)
    assert summary["hubness, the skewness of 10-occurrences"][0] == f"{report.hubness.skewness:.2f}"
    assert gaussianity(normal(8, 2)).hubness is None
    # the p-value is corrected for having chosen the worst of d dimensions, and is a probability
    assert report.p_value == 3 * float(report.ks_p_value.min())
    assert gaussianity(normal(500, 3, seed=1)).p_value <= 1.0
