"""The kernel distance against its definition and torchmetrics; without bias, and with the error of repeats."""

import warnings

import pytest
import torch

from diffusion.errors import UserError
from diffusion.metrics import KernelReference, kernel, kernel_distance


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x, y):
    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal(table):
        return (table.sum() - table.trace()) / (len(table) * (len(table) - 1))

    return float(off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean())


def test_it_is_the_definition():
    x, y = normals(17, 4), normals(23, 4, 1) + 0.5
    assert kernel_distance(x, y).value == pytest.approx(by_definition(x, y), rel=1e-10)


def test_the_errors_are_those_of_leaving_each_out():
    x, y = normals(9, 3), normals(12, 3, 1) + 0.3

    def variance(values):
        values = torch.tensor(values, dtype=torch.float64)
        return float((values - values.mean()).square().sum()) * (len(values) - 1) / len(values)

    without_x = variance([by_definition(torch.cat((x[:i], x[i + 1 :])), y) for i in range(len(x))])
    without_y = variance([by_definition(x, torch.cat((y[:j], y[j + 1 :]))) for j in range(len(y))])
    found = kernel_distance(x, y)
    assert found.std_error == pytest.approx(without_x**0.5, rel=1e-9)
    assert found.std_error_both == pytest.approx((without_x + without_y) ** 0.5, rel=1e-9)


def test_chunks_change_nothing(monkeypatch):
    x, y = normals(40, 3), normals(31, 3, 1)
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "_BLOCK", 100)
    assert kernel_distance(x, y).value == pytest.approx(whole.value, rel=1e-12)
    assert kernel_distance(x, y).std_error == pytest.approx(whole.std_error, rel=1e-12)


def test_no_bias_and_the_error_of_repeats():
    """x and y of one law: 0 on average, even at few samples; of two laws: the same at few and at many samples."""
    same = torch.tensor([kernel_distance(normals(12, 3, s), normals(15, 3, 9000 + s)).value for s in range(600)])
    assert abs(float(same.mean())) < 4 * float(same.std()) / len(same) ** 0.5
    assert 0.3 < float((same < 0).double().mean()) < 0.75

    def repeats(n, count, reference=None):
        return [
            kernel_distance(normals(n, 3, s) + 0.6, normals(n, 3, 9000 + s) if reference is None else reference)
            for s in range(count)
        ]

    few, many = repeats(12, 600), repeats(150, 200)
    values, larger = (torch.tensor([f.value for f in found]) for found in (few, many))
    allowed = 4 * (float(values.var()) / len(values) + float(larger.var()) / len(larger)) ** 0.5
    assert abs(float(values.mean() - larger.mean())) < allowed
    errors = torch.tensor([f.std_error_both for f in many])
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(larger.std()), rel=0.2)
    held = repeats(150, 200, normals(150, 3, 77))
    spread = torch.tensor([f.value for f in held]).std()
    assert float(torch.tensor([f.std_error for f in held]).square().mean().sqrt()) == pytest.approx(
        float(spread), rel=0.2
    )


def test_torchmetrics_says_the_same():
    from torchmetrics.image.kid import KernelInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double() / 255

    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, high, (60, 3, 2, 2), generator=generator).to(torch.uint8) for high in (256, 180))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60)
        theirs.update(real, real=True)
        theirs.update(fake, real=False)
        expected = float(theirs.compute()[0])
    assert kernel_distance(Flat()(fake), Flat()(real)).value == pytest.approx(expected, rel=1e-5)


def test_too_few_or_unlike_features_are_refused():
    with pytest.raises(UserError, match="found 2 and 9"):
        kernel_distance(normals(2, 3), normals(9, 3))
    with pytest.raises(UserError, match="dimensions 3 and 4"):
        kernel_distance(normals(9, 3), normals(9, 4))


def test_what_is_among_a_reference_is_summed_once(monkeypatch):
    x, y = normals(9, 3, 0), normals(20, 3, 1)
    reference, sums, summed = KernelReference(y), kernel._sums, []
    monkeypatch.setattr(kernel, "_sums", lambda *pair: summed.append(len(pair[0])) or sums(*pair))
    for few in (x, x[:5]):
        assert kernel_distance(few, reference) == kernel_distance(few, y)
    assert summed.count(20) == 3, "of the features themselves twice"
