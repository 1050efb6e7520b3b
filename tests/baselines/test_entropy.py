import math

import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from scipy.stats import kstest
from sklearn.neighbors import NearestNeighbors
from torch import nn

from diffusion.baselines.entropy import knn_entropy, normal_entropy
from diffusion.errors import UserError
from diffusion.numerics import nearest


def points(n, d, seed=0, law="gaussian", dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(n, d, generator=generator, dtype=torch.float64)
    if law == "uniform":
        return u.to(dtype)
    if law == "laplace":
        return (-(2 * u - 1).sign() * (1 - (2 * u - 1).abs()).log()).to(dtype)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def reference(z, k):
    """The formula by a k-d tree and scipy's special functions."""
    n, d = z.shape
    radius = torch.from_numpy(cKDTree(z.numpy()).query(z.numpy(), k + 1)[0][:, k])
    volume = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    return float(digamma(n) - digamma(k) + volume + d * radius.log().mean())


ENTROPIES = {"gaussian": normal_entropy(1), "uniform": 0.0, "laplace": 1.0 + math.log(2.0)}
# The bias in nats at k = 3, measured with the k-d tree on numpy's random numbers (10 sets of 500, 3 of 5000).
BIAS = {
    ("gaussian", 8, 500): 0.00,
    ("gaussian", 8, 5000): -0.06,
    ("gaussian", 32, 500): 3.52,
    ("gaussian", 32, 5000): 2.52,
    ("uniform", 8, 500): 1.32,
    ("uniform", 8, 5000): 0.94,
    ("uniform", 32, 500): 9.78,
    ("uniform", 32, 5000): 8.61,
    ("laplace", 8, 500): 0.08,
    ("laplace", 8, 5000): -0.06,
    ("laplace", 32, 500): 4.59,
    ("laplace", 32, 5000): 3.45,
}


# Each law and each number of dimensions with many points; the others are slow ones.
_MANY = {("gaussian", 32), ("gaussian", 2), ("uniform", 1), ("laplace", 8)}
_SETTINGS = [
    pytest.param(law, d, n, marks=pytest.mark.slow if n == 5000 and (law, d) not in _MANY else ())
    for law in ENTROPIES for d in (1, 2, 8, 32) for n in (500, 5000)
]  # fmt: skip


@pytest.mark.parametrize(("law", "d", "n"), _SETTINGS)
def test_closed_forms_within_the_known_bias(law, d, n):
    bias = BIAS.get((law, d, n), 0.0)
    # the sample's own spread: the variance of log p(x) and of log r_k, over n
    noise = 4.0 * math.sqrt((d + 1.0) / n)
    found = float(knn_entropy(points(n, d, 1, law)))
    assert abs(found - d * ENTROPIES[law] - bias) < noise


@pytest.mark.slow
@pytest.mark.parametrize("law", list(ENTROPIES))
def test_twenty_thousand_points(law):
    for d in (1, 2):
        noise = 4.0 * math.sqrt((d + 1.0) / 20_000)
        assert float(knn_entropy(points(20_000, d, 1, law))) == pytest.approx(d * ENTROPIES[law], abs=noise)
    for d in (8, 32):
        z = points(20_000, d, 1, law)
        found = float(knn_entropy(z))
        # exhaustive distances by scikit-learn: a tree is no help in 32 dimensions
        search = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(z.numpy())
        radius = torch.from_numpy(search.kneighbors(z.numpy())[0][:, 3])
        volume = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
        expected = float(digamma(20_000) - digamma(3) + volume + d * radius.log().mean())
        assert found == pytest.approx(expected, abs=1e-8)
        # the bias goes on falling with n from where it stands at 5,000
        bias = found - d * ENTROPIES[law]
        assert -0.15 < bias < max(0.15, BIAS[(law, d, 5000)])


@pytest.mark.parametrize("d", [1, 2, 3, 8, 32, 100])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_agrees_with_a_kd_tree(d, k):
    z = points(300, d) * torch.linspace(0.1, 10, d, dtype=torch.float64)
    assert float(knn_entropy(z, k)) == pytest.approx(reference(z, k), abs=1e-10)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 4), (20, 19)])
def test_any_k_below_n(n, k):
    z = points(n, 3)
    assert float(knn_entropy(z, k)) == pytest.approx(reference(z, k), abs=1e-10)


def test_chunks_change_nothing(monkeypatch):
    z = points(257, 5)
    whole = knn_entropy(z)
    monkeypatch.setattr(nearest, "_BLOCK", 3 * 257)
    assert float(knn_entropy(z)) == float(whole)


def test_gradient_is_that_of_the_formula():
    z, k = points(60, 4), 3
    distances = torch.full((60, 60), math.inf, dtype=torch.float64)
    ours, naive = z.clone().requires_grad_(), z.clone().requires_grad_()
    off_diagonal = ~torch.eye(60, dtype=torch.bool)
    i, j = off_diagonal.nonzero(as_tuple=True)
    distances = distances.index_put((i, j), (naive[i] - naive[j]).norm(dim=1))
    radius = distances.kthvalue(k, dim=1).values
    (expected,) = torch.autograd.grad(4 * radius.log().mean(), naive)
    (found,) = torch.autograd.grad(knn_entropy(ours, k), ours)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(knn_entropy, (points(12, 2).requires_grad_(),))


def test_translation_and_scaling():
    z = points(400, 3)
    h = float(knn_entropy(z))
    assert float(knn_entropy(z + torch.tensor([5.0, -7.0, 1e3]))) == pytest.approx(h, abs=1e-9)
    assert float(knn_entropy(-0.01 * z)) == pytest.approx(h + 3 * math.log(0.01), abs=1e-9)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_float32_far_from_the_origin_keeps_its_digits(offset):
    z = (points(2000, 2) + offset).float()
    assert float(knn_entropy(z)) == pytest.approx(reference(z.double(), 3), abs=1e-4)


def test_clusters_far_from_each_other_keep_their_digits():
    z = points(1000, 2) * 1e-3
    z[::2] += 100.0
    assert float(knn_entropy(z)) == pytest.approx(reference(z, 3), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_are_as_far_as_the_digits_reach_and_scale(dtype):
    """Their radius is the spread times the machine epsilon, without a gradient; the others' is as ever."""
    n, d = 200, 2
    z = points(n, d, dtype=dtype)
    z[:8] = z[0]
    z.requires_grad_()
    h = knn_entropy(z)
    (gradient,) = torch.autograd.grad(h, z)
    assert h.dtype == dtype
    h, z = h.detach(), z.detach()
    x, limits = z.double(), torch.finfo(dtype)
    distance = (x[:, None] - x).norm(dim=2).fill_diagonal_(math.inf)
    neighbour = distance.argsort(1)[:, 2]
    difference = x - x[neighbour]
    radius = difference.norm(dim=1)
    difference[:8], radius[:8] = 0.0, limits.eps * (x - x.mean(0)).square().sum(1).mean().sqrt()
    constant = float(digamma(n) - digamma(3)) + math.log(math.pi)
    assert float(h) == pytest.approx(d * float(radius.log().mean()) + constant, abs=1e-4)
    slopes = d / n * difference / radius[:, None].square()
    expected = slopes.index_add(0, neighbour, slopes, alpha=-1.0)
    gradient[0], expected[0] = gradient[:8].sum(0), expected[:8].sum(0)  # which of them is the neighbour is open
    torch.testing.assert_close(gradient[[0, *range(8, n)]].double(), expected[[0, *range(8, n)]], rtol=1e-3, atol=1e-4)
    assert float(knn_entropy(4.0 * z)) == pytest.approx(float(h) + 2 * math.log(4.0), abs=1e-4)
    alike = math.log(limits.tiny) + float(digamma(9) - digamma(3)) + math.log(math.pi)
    assert float(knn_entropy(torch.zeros(9, 2, dtype=dtype))) == pytest.approx(alike, rel=1e-5)


def test_the_point_itself_is_left_out_by_index_not_by_distance():
    z = torch.tensor([[0.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    assert nearest.nearest_others(z, 1)[1][:2, 0].tolist() == [1, 0]
    assert int(nearest.nearest_others(z, 1)[1][3]) == 2


def test_half_precision_and_nan():
    z = points(100, 2).to(torch.bfloat16)
    assert knn_entropy(z).dtype == torch.float32
    broken = points(100, 2)
    broken[3, 1] = math.nan
    assert knn_entropy(broken).isnan()


def test_maximum_entropy_at_unit_variance_is_gaussian():
    """A map of uniform noise, standardised, trained on the entropy alone: its law passes KS, which the noise's fails.

    (Points moved freely would repel each other and overfit the estimator; a map with fresh noise cannot.)
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)

    def codes(n, trained=True):
        u = 6 * torch.rand(n, 2) - 3
        z = u + network(u) if trained else u
        return (z - z.mean(0)) / z.std(0)

    for _ in range(400):
        optimizer.zero_grad()
        (-knn_entropy(codes(256))).backward()
        optimizer.step()
        schedule.step()
    critical = 1.36 / math.sqrt(2000)  # of the Kolmogorov-Smirnov statistic, 5 % level
    with torch.no_grad():
        x, before = codes(2000).double(), codes(2000, trained=False).double()
    assert all(kstest(column.numpy(), "norm").statistic > critical for column in before.T)
    assert all(kstest(column.numpy(), "norm").statistic < critical for column in x.T)
    assert ((before.pow(4).mean(0) - 3.0).abs() > 1.1).all()
    assert ((x.pow(4).mean(0) - 3.0).abs() < 0.7).all()
    assert (x.pow(3).mean(0).abs() < 0.2).all()
    assert float(knn_entropy(x)) > float(knn_entropy(before)) + 0.15
    assert normal_entropy(2) - 0.2 < float(knn_entropy(x)) < normal_entropy(2) + 0.1


def refused(z, k, match):
    with pytest.raises(UserError, match=match):
        knn_entropy(z, k)


def test_bad_input():
    refused(torch.zeros(5, 0), 1, r"z: found shape \(5, 0\)")
    refused(torch.zeros(5, 2), 5, "k: found 5 for 5 points; accepted: 1 to 4")
    refused(torch.zeros(5, 2), 0, "k: found 0")
