import math

import pytest
import torch
from scipy.stats import logistic, norm

from diffusion.baselines.decoders import Bernoulli, Categorical, DiscretizedGaussian, DiscretizedLogisticMixture
from diffusion.baselines.observation import log_ndtr, scale_of
from diffusion.errors import UserError

MODELS = [
    *(DiscretizedLogisticMixture(levels, components) for levels in (2, 17, 256) for components in (1, 5)),
    *(DiscretizedGaussian(levels) for levels in (2, 17, 256)),
    *(Categorical(levels) for levels in (2, 17, 256)),
    Bernoulli(),
]
each_model = pytest.mark.parametrize("model", MODELS, ids=str)


def parameters(model, batch, spread=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = spread * torch.randn(batch, model.parameters * 2, 3, generator=generator, dtype=torch.float64)
    return params.to(dtype)


def table(model, params):
    """P(level) of every pixel: (L, B, 2, 3)."""
    levels = torch.arange(model.levels, dtype=torch.uint8)
    return each_with_all(model.level_log_prob, levels, params).exp()


def each_with_all(function, numbers, params):
    """The function of each number, the same for all pixels, and all parameters, in one call: (N, B, 2, 3)."""
    n, b = len(numbers), len(params)
    same = numbers.repeat_interleave(b)[:, None, None].expand(n * b, 2, 3)
    return function(same, params.repeat(n, 1, 1)).unflatten(0, (n, b))


@each_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_levels_sum_to_one(model, dtype, tolerance, spread):
    total = table(model, parameters(model, 5, spread, dtype)).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", [m for m in MODELS if not isinstance(m, Categorical | Bernoulli)], ids=str)
def test_levels_sum_to_one_at_the_extremes_in_float32(model):
    """Scales from far below a bin to far beyond the image, means on an edge and far outside, weights that vanish."""
    mean, raw = torch.cartesian_prod(
        torch.tensor([0.0, -1.03, 3.0, -50.0, 1e4]), torch.tensor([-100.0, -8.0, -3.0, 2.0, 60.0])
    ).repeat(3, 1).T[:, :, None, None]  # fmt: skip
    params = parameters(model, len(mean), 1e-3, torch.float32)
    k = model.parameters // (2 if isinstance(model, DiscretizedGaussian) else 3)
    params[:, : -4 * k] *= 5e4  # logits of 50 (two channels); the Gaussian has none
    params[:, -4 * k : -2 * k] += mean
    params[:, -2 * k :] += raw
    total = table(model, params).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


@each_model
def test_cumulative_is_the_sum_of_the_levels(model):
    params = parameters(model, 4)
    expected = torch.cat([torch.zeros(1, 4, 2, 3, dtype=torch.float64), table(model, params).cumsum(0)])
    found = each_with_all(lambda k, params: model.cumulative(params, k), torch.arange(model.levels + 1), params)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_model
def test_mean_is_that_of_the_levels_centres(model):
    params = parameters(model, 4)
    centres = (2.0 * torch.arange(model.levels, dtype=torch.float64) + 1.0) / model.levels - 1.0
    expected = (centres[:, None, None, None] * table(model, params)).sum(0)
    torch.testing.assert_close(model.mean(params), expected, rtol=0, atol=1e-12)


@each_model
def test_samples_have_the_probabilities_of_the_levels(model):
    """Evenly spaced u give each level its share to within one draw."""
    n, params = 2000, parameters(model, 1)
    u = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None, None].expand(n, 2, 3)
    samples = model.sample(params.expand(n, -1, -1), u)
    counts = torch.stack([(samples == level).sum(0) for level in range(model.levels)])
    assert samples.dtype == torch.uint8
    assert ((counts - n * table(model, params)[:, 0]).abs() <= 1.0 + 1e-6).all()


def test_discretised_laws_agree_with_scipy():
    images = torch.arange(17, dtype=torch.uint8).reshape(17, 1)
    edges = torch.linspace(-1, 1, 18, dtype=torch.float64)
    edges[0], edges[-1] = -math.inf, math.inf
    for mean, raw in [(0.3, -1.0), (-0.9, 0.5), (2.0, -0.5)]:
        params = torch.tensor([[mean, raw]], dtype=torch.float64).expand(17, 2)
        scale = float(scale_of(torch.tensor(raw, dtype=torch.float64), 17))
        assert scale == pytest.approx(math.exp(raw), rel=2e-2)
        mass = torch.from_numpy(norm.cdf(edges, mean, scale)).diff()
        torch.testing.assert_close(DiscretizedGaussian(17).log_prob(images, params).exp(), mass, rtol=1e-9, atol=1e-13)

        model = DiscretizedLogisticMixture(17, 1)
        params = torch.tensor([[0.7, mean, raw]], dtype=torch.float64).expand(17, 3)
        scale = float(scale_of(torch.tensor(raw, dtype=torch.float64) - math.log(3.0), 17))
        mass = torch.from_numpy(logistic.cdf(edges, mean, scale)).diff()
        torch.testing.assert_close(model.log_prob(images, params).exp(), mass, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("model", [DiscretizedGaussian(256), DiscretizedLogisticMixture(256, 2)], ids=str)
@pytest.mark.parametrize("mean", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("raw", [-60.0, -3.0, 60.0])
def test_extreme_parameters_keep_value_and_gradient_in_float32(model, mean, raw):
    images = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    third = model.parameters // 2 if model.parameters == 2 else model.parameters // 3
    params = torch.zeros(256, model.parameters)
    params[:, -2 * third : -third] = mean
    params[:, -third:] = raw
    params.requires_grad_()
    log_prob = model.log_prob(images, params)
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert float(log_prob.detach().double().exp().sum()) == pytest.approx(1.0, abs=1e-4), "of all levels"
    truth = model.log_prob(images, params.double())
    (slope,) = torch.autograd.grad(truth.sum(), params)
    torch.testing.assert_close(log_prob.double(), truth, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient, slope, rtol=1e-2, atol=1e-3)


def test_far_tails_keep_their_digits_in_float32():
    images = torch.arange(1, 16, dtype=torch.uint8).reshape(15, 1)
    params = torch.tensor([[4.0, -2.5]]).expand(15, 2)
    exact = DiscretizedGaussian(17).log_prob(images, params.double())
    assert (exact < -500).any()
    torch.testing.assert_close(DiscretizedGaussian(17).log_prob(images, params).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_log_ndtr_and_its_gradient(dtype, tolerance):
    x = torch.cat([torch.linspace(-30, 6, 300), -torch.logspace(1, 6, 60)]).to(dtype).requires_grad_()
    found = log_ndtr(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    found, values = found.detach(), x.detach().double()
    exact = torch.from_numpy(norm.logcdf(values.numpy()))
    slope = torch.exp(torch.from_numpy(norm.logpdf(values.numpy())) - torch.from_numpy(norm.logcdf(values.numpy())))
    slope = torch.where(values < -1e3, -values - 1.0 / values, slope)  # the quotient cancels far out; its expansion not
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance / 10)
    torch.testing.assert_close(gradient.double(), slope, rtol=max(2 * tolerance, 1e-10), atol=tolerance)


@pytest.mark.parametrize("model", [m for m in MODELS if m.levels == 17], ids=str)
def test_gradients(model):
    images = torch.tensor([[0, 5], [16, 9]], dtype=torch.uint8)[:, :, None].expand(2, 2, 3).contiguous()
    params = parameters(model, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: model.log_prob(images, p), (params,))


def test_components_start_apart():
    model = DiscretizedLogisticMixture(17, 3)
    params = torch.zeros(1, 9, 1, requires_grad=True)
    model.log_prob(torch.full((1, 1, 1), 4, dtype=torch.uint8), params).sum().backward()
    assert len(params.grad[0, 3:6, 0].unique()) == 3


def test_channels_are_ordered_parameter_first():
    """(B, P C): the first C channels are the means."""
    params = torch.tensor([[-0.5, 0.5, -5.0, -5.0]])[:, :, None]
    torch.testing.assert_close(
        DiscretizedGaussian(16).mean(params)[0, :, 0], torch.tensor([-0.5, 0.5]), atol=0.07, rtol=0
    )


def test_half_precision_is_computed_in_float32():
    params = parameters(DiscretizedGaussian(17), 2, dtype=torch.bfloat16)
    assert DiscretizedGaussian(17).log_prob(torch.zeros(2, 2, 3, dtype=torch.uint8), params).dtype == torch.float32


def test_bad_arguments_are_refused():
    for make in (lambda: DiscretizedGaussian(1), lambda: Categorical(300), lambda: DiscretizedLogisticMixture(257)):
        with pytest.raises(UserError, match="levels: found"):
            make()
    with pytest.raises(UserError, match="components: found 0"):
        DiscretizedLogisticMixture(17, 0)
    with pytest.raises(UserError, match="Bernoulli takes 2"):
        Bernoulli(17)
    model, images = DiscretizedGaussian(17), torch.full((1, 1, 4), 17, dtype=torch.uint8)
    with pytest.raises(UserError, match="found level 17; accepted: 0 to 16"):
        model.log_prob(images, torch.zeros(1, 2, 4))
    with pytest.raises(UserError, match=r"params: found shape \(1, 3, 4\); accepted: \(1, 2, 4\)"):
        model.log_prob(images, torch.zeros(1, 3, 4))
