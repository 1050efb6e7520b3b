"""The estimate's arithmetic, against SciPy and by hand."""

import json
import math

import pytest
import torch
from scipy import stats

from diffusion.errors import UserError
from diffusion.likelihood.estimate import TEST_SET, Estimate, mean_error, mean_interval, student_interval


def estimate(log_prob, first=0, **changes) -> Estimate:
    log_prob = torch.as_tensor(log_prob, dtype=torch.float64)
    options: dict = {
        "dims": 3,
        "levels": 17,
        "std_error": torch.zeros_like(log_prob),
        "kind": "lower bound",
        "protocol": {"seed": 0},
        "indices": torch.arange(first, first + len(log_prob)),
        "terms": {"parts": log_prob[:, None].expand(-1, 2)},
    }
    return Estimate(log_prob=log_prob, **(options | changes))


@pytest.mark.parametrize("n", [2, 5, 40])
def test_interval_is_students(n):
    e = estimate(-10.0 + torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64))
    bits = e.bits_per_dim.numpy()
    interval = e.mean()
    low, high = stats.t.interval(0.95, n - 1, bits.mean(), stats.sem(bits))
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.sem == pytest.approx(stats.sem(bits)) == e.error_budget["test set"]


def test_units():
    # one bit for each of three dimensions
    assert float(estimate([-3 * math.log(2)]).bits_per_dim) == pytest.approx(1.0)
    assert mean_error(torch.full((4,), 3 * math.log(2)), 3) == pytest.approx(0.5)


def test_interval_of_one_image_is_unknown():
    interval = estimate([-1.0]).mean()
    assert interval.mean == pytest.approx(1 / (3 * math.log(2)))
    assert all(math.isnan(value) for value in (interval.low, interval.high, interval.sem))


def test_join_equals_the_whole():
    values = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = estimate(values).with_error("probes", 0.02)
    parts = [
        estimate(values[:4], nfe=10.0, seconds=1.0).with_error("probes", 0.03),
        estimate(values[4:], first=4, nfe=19.0, seconds=2.0).with_error("probes", 0.06),
    ]
    joined = Estimate.join(parts)
    assert joined.mean() == whole.mean()
    assert joined.indices is not None
    assert joined.indices.tolist() == list(range(9))
    assert joined.terms["parts"].shape == (9, 2)
    assert (joined.nfe, joined.seconds) == (15.0, 3.0)
    assert joined.error_budget["test set"] == whole.error_budget["test set"]
    assert joined.error_budget["probes"] == pytest.approx(math.hypot(4 / 9 * 0.03, 5 / 9 * 0.06))


def test_random_errors_add_in_squares_and_systematic_ones_as_they_are():
    e = estimate([-1.0, -2.0, -4.0]).with_error("probes", 0.03).with_error("draws", 0.04)
    e = e.with_error("solver", 0.01).with_error("data end", 0.02)
    assert e.random_error == pytest.approx(0.05)
    assert e.systematic_error == pytest.approx(0.03)
    assert e.measurement_error == pytest.approx(0.08)
    assert e.total_error == pytest.approx(e.mean().sem + 0.03), "the spread over images has the random causes in it"
    alike = estimate([-1.0, -1.0]).with_error("probes", 0.03).with_error("solver", 0.01)
    assert alike.total_error == pytest.approx(0.04), "two images that happen to agree hide no noise"
    assert alike.mean().high - alike.mean().mean == pytest.approx(12.706 * 0.03, rel=1e-4), "nor does the interval"
    assert (alike.mean().sem, alike.error_budget[TEST_SET]) == (0.03, 0.0)
    assert e.mean() == mean_interval(e.bits_per_dim), "causes that the spread has in it do not widen it"
    assert math.isnan(estimate([-1.0]).with_error("probes", 0.03).total_error), "one image has no spread"
    unknown = estimate([-1.0, -2.0], std_error=torch.full((2,), math.nan).double())
    assert math.isnan(unknown.measurement_error)
    assert estimate([-1.0, -2.0]).measurement_error == 0.0
    # of two halves a bias stays, noise is averaged
    parts = [estimate([-1.0], first=i).with_error("solver", 0.02).with_error("probes", 0.02) for i in range(2)]
    joined = Estimate.join(parts).error_budget
    assert (joined["solver"], joined["probes"]) == pytest.approx((0.02, 0.02 / math.sqrt(2)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": {"seed": 1}}, "unlike protocol"),
        ({"kind": "surrogate"}, "unlike kind"),
        ({"levels": 256}, "unlike levels"),
        ({"first": 1}, "each image counts once"),
    ],
)
def test_join_refuses(other, message):
    with pytest.raises(UserError, match=message):
        Estimate.join([estimate([-1.0, -2.0]), estimate([-3.0], **({"first": 2} | other))])


def test_values_that_are_not_one_per_sample_are_refused():
    for log_prob, std_error in ((torch.zeros(3), torch.zeros(2)), (torch.zeros(3, 1), torch.zeros(3, 1))):
        with pytest.raises(UserError, match="log_prob, std_error: found shapes"):
            Estimate(log_prob, 2, 256, std_error, "exact", {})


def test_unknown_kind():
    with pytest.raises(UserError, match="Did you mean 'exact'"):
        estimate([-1.0], kind="exakt")


def test_plain_dict_is_json():
    plain = json.loads(
        json.dumps(estimate([-1.0], std_error=torch.tensor([math.nan]).double()).to_dict(), allow_nan=False)
    )
    assert plain["std_error"] == [None]
    assert plain["sem"] is None
    assert plain["log_prob"] == [-1.0]
    assert plain["bits_per_dim"] == pytest.approx(1 / (3 * math.log(2)))
    assert len(plain["terms_bits_per_dim"]["parts"]) == 2


LAWS = {
    "normal": (lambda x, u: x, 0.0),
    "log-normal": (lambda x, u: x.exp(), math.exp(0.5)),
    "outliers": (lambda x, u: x + 10.0 * (u < 0.02), 0.2),
}


@pytest.mark.parametrize(("law", "n", "least"), [
    ("normal", 8, 94), ("normal", 32, 94), ("normal", 360, 94), ("log-normal", 8, 84), ("log-normal", 32, 92.5),
    ("log-normal", 360, 94), ("outliers", 8, 91), ("outliers", 360, 94), ("outliers", 1000, 94),
])  # fmt: skip
def test_the_interval_of_the_mean_covers(law, n, least):
    """1,000 samples: never less than Student's, which of log-normal values has 83 and 89 % at n = 8 and 32."""
    made, mean = LAWS[law]
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(1000, n, generator=generator, dtype=torch.float64)
    rows = made(x, torch.rand(1000, n, generator=generator, dtype=torch.float64))
    students, ours = [student_interval(row) for row in rows], [mean_interval(row) for row in rows]
    assert all(a.low <= s.low and s.high <= a.high for a, s in zip(ours, students, strict=True))
    assert 0.1 * sum(a.low <= mean <= a.high for a in ours) >= least
    if law == "normal":
        assert sum(a == s for a, s in zip(ours, students, strict=True)) > 900, "and of normal values it is Student's"


def test_the_interval_is_moved_on_the_side_of_the_tail():
    values = torch.tensor([0.0, 0.1, 0.2, 0.1, 0.0, 0.2, 0.1, 9.0], dtype=torch.float64)
    ours, student = mean_interval(values), student_interval(values)
    assert ours.high > student.high + 0.5
    assert ours.low == student.low
    below = mean_interval(-values)
    assert (below.low, below.high) == pytest.approx((-ours.high, -ours.low))
