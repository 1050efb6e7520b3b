"""Conditions by parts on linear-Gaussian (x, c), where posterior mean, samples and I(x; c) are known.

x = A c + e with c ~ N(m, I) and e ~ N(0, s^2 I), A = a Q of a rotation Q: x given c is N(A c, s^2 I), and without it
N(A m, (a^2 + s^2) I), so that I(x; c) = d/2 log2(1 + a^2 / s^2) bits.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import log_density, sample, samplers
from diffusion.commands.evaluate.given import information
from diffusion.denoisers import NetworkDenoiser
from diffusion.denoisers.condition import of_parts
from diffusion.denoisers.denoiser import Denoiser
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.networks import MLP, DiT, UNet
from diffusion.networks.parts import CLASSES, FIELD, VECTOR, Part
from diffusion.objectives import Objective, time_distribution, weighting
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Rectified

D, GAIN, NOISE = 2, 1.5, 0.5
F64 = torch.float64
ROTATION = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
M = torch.tensor([0.5, -0.5], dtype=F64)
BITS = D / 2 * math.log2(1 + GAIN**2 / NOISE**2)
SCHEDULE = Cosine()
VECTOR_PART = Part("c", VECTOR, D, mean=tuple(M.tolist()), std=(1.0,) * D)


def mean_of(c):
    return GAIN * c.to(F64) @ ROTATION.T


def posterior_mean(x_t, t, c):
    """E[x | x_t, c] in closed form; c is NaN where it is none."""
    none = torch.isnan(c).any(1, keepdim=True)
    mean = torch.where(none, mean_of(M[None]), mean_of(c.nan_to_num()))
    variance = torch.where(none, GAIN**2 + NOISE**2, NOISE**2)
    alpha, sigma = (of.reshape(-1, 1).to(F64) for of in SCHEDULE(t))
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    return (mean + gain * (x_t.to(F64) - alpha * mean)).to(x_t.dtype)


class LinearGaussian(Denoiser):
    """The exact denoiser of x given c, or none."""

    def __init__(self):
        super().__init__()
        self.schedule, self.shape, self.parts = SCHEDULE, (D,), (VECTOR_PART,)

    def forward(self, x_t, t, cond=None):
        c = torch.full((len(x_t), D), math.nan) if cond is None else cond.given
        return posterior_mean(x_t, t, c)


def drawn(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c = M + torch.randn(n, D, generator=generator, dtype=F64)
    return mean_of(c) + NOISE * torch.randn(n, D, generator=generator, dtype=F64), c


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_draws_the_law_of_the_condition(name):
    """Sample by sample it is the draw from N(A c, s^2 I), and with none that from N(A m, (a^2 + s^2) I)."""
    model, c = LinearGaussian(), torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]], dtype=F64)
    options = {"steps": 6, "dtype": F64, "seed": 3} | {
        "ode": {"tolerance": 1e-3},
        "adaptive-sde": {"tolerance": 0.2},
    }.get(name, {})
    together = sample(model, 3, name, cond={"c": c}, batch_size=2, **options)
    for row in range(3):
        alone = sample(Gaussian(mean_of(c[row]), NOISE, SCHEDULE), 1, name, start=row, **options)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=1e-6)
    marginal = Gaussian(mean_of(M), math.hypot(GAIN, NOISE), SCHEDULE)
    torch.testing.assert_close(sample(model, 2, name, **options), sample(marginal, 2, name, **options))


def test_guidance_leads_from_none_without_being_told_of_it():
    """The guided score is that of p(x_t) (p(x_t | c) / p(x_t))^w."""
    model, (x, c) = LinearGaussian(), drawn(4)
    t = torch.full((4,), 0.4, dtype=F64)
    guided = sample(model, 4, "ddim", steps=2, cond=c, guidance=2.0, noise=x)
    null = torch.full((4, D), math.nan)
    given = sample(model, 4, "ddim", steps=2, cond={"c": c}, guidance=2.0, noise=x, cond_null={"c": None})
    assert torch.equal(guided, given)

    class Lerp(LinearGaussian):
        def forward(self, x_t, t, cond=None):
            return torch.lerp(posterior_mean(x_t, t, null), posterior_mean(x_t, t, c), 2.0)

    torch.testing.assert_close(guided, sample(Lerp(), 4, "ddim", steps=2, noise=x))
    assert torch.equal(model(x, t, {"c": None}), model(x, t))


@pytest.mark.parametrize("method", ["ode", "elbo", "immse"])
def test_what_the_condition_tells_is_the_mutual_information(method):
    x, c = drawn(400)
    options = {"ode": {"tolerance": 1e-5}, "elbo": {"evaluations": 128}, "immse": {"evaluations": 128}}[method]
    model = LinearGaussian()
    conditional = log_density(model, x, method=method, cond={"c": c}, **options)
    none = log_density(model, x, method=method, **options)
    exact = torch.distributions.Normal(mean_of(c), NOISE).log_prob(x).sum(1)
    marginal = torch.distributions.Normal(mean_of(M), math.hypot(GAIN, NOISE)).log_prob(x).sum(1)
    ratio = (exact - marginal) / math.log(2.0)
    found = information(conditional, none)
    assert found.low < BITS < found.high
    noise = 0.0 if method == "ode" else 4.0 * float((conditional.log_prob - exact).std()) / math.sqrt(len(x))
    assert abs(found.mean - float(ratio.mean())) < 0.005 + noise / math.log(2.0)
    if method == "ode":
        torch.testing.assert_close(conditional.log_prob, exact, rtol=0, atol=5e-3)
        alone = mean_width(conditional.log_prob), mean_width(none.log_prob)
        assert found.high - found.low < sum(alone), "the difference is paired"


def mean_width(log_prob):
    return 2 * 1.96 * float(log_prob.std()) / math.sqrt(len(log_prob)) / math.log(2.0)


def test_a_network_learns_the_posterior_mean_with_and_without():
    torch.manual_seed(0)
    model = NetworkDenoiser(MLP(D, width=32, depth=2, parts=(VECTOR_PART,)), SCHEDULE, "v", (D,), parts=(VECTOR_PART,))
    loss = Objective(weighting("elbo", SCHEDULE), time_distribution("log-snr"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    generator = torch.Generator().manual_seed(1)
    for step in range(400):
        x, c = (of.float() for of in drawn(256, step))
        c = VECTOR_PART.drop(c, torch.rand(len(c), generator=generator) < 0.3)
        optimizer.zero_grad()
        loss(model, x, cond=(c,), generator=generator).mean().backward()
        optimizer.step()
        scheduler.step()
    x, c = (of.float() for of in drawn(1000, 10_000))
    t = torch.full((1000,), 0.6, dtype=F64)
    alpha, sigma = (float(of[0]) for of in SCHEDULE(t))
    x_t = alpha * x + sigma * torch.randn(x.shape, generator=generator)
    none = torch.full_like(c, math.nan)
    told = (posterior_mean(x_t, t, c) - posterior_mean(x_t, t, none)).square().mean()
    model.eval()
    with torch.no_grad():
        for cond in (c, none):
            off = (model(x_t, t, {"c": cond if cond is c else None}) - posterior_mean(x_t, t, cond)).square().mean()
            assert off < 0.15 * told, (off, told)


PARTS = (
    Part("kind", CLASSES, 3, names=("cat", "dog", "emu")),
    Part("age", VECTOR, 1, mean=(40.0,), std=(10.0,)),
    Part("map", FIELD, 2, (4, 4), (0.0, 5.0), (1.0, 2.0)),
)


@pytest.mark.parametrize(
    ("network", "sides", "schedule"),
    [
        (UNet, (8, 8), SCHEDULE),
        (DiT, (8, 8), SCHEDULE),
        (UNet, (8,), VE()),
        (DiT, (8,), EDM()),
        (UNet, (4, 2, 4), Rectified()),
        (DiT, (4, 2, 4), DDPM()),
        (MLP, (), VP()),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_network_takes_all_parts_and_knows_none_from_all_of_them(network, sides, schedule):
    torch.manual_seed(0)
    coarse = tuple(side // 2 for side in sides)
    parts = (*PARTS[:2], replace(PARTS[2], sides=coarse)) if sides else PARTS[:2]
    options = {UNet: {"base_channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "fourier_features": [1]},
               DiT: {"width": 16, "depth": 1, "heads": 2}, MLP: {"width": 8, "depth": 1}}[network]  # fmt: skip
    options |= {"image_size": sides} if sides else {}
    net = network(1 if sides else 3, parts=parts, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    shape = (1, *sides) if sides else (3,)
    model = NetworkDenoiser(net, schedule, "v" if network is not DiT else "x", shape, parts=parts).eval()
    x, t = torch.randn(2, *shape), schedule.inverse_log_snr(torch.tensor([1.0, -1.0], dtype=F64))
    whole = {"kind": ["cat", 2], "age": torch.tensor([[20.0], [60.0]])}
    whole |= {"map": torch.randn(2, 2, *coarse)} if sides else {}
    with torch.no_grad():
        found, none = model(x, t, whole), model(x, t)
        assert torch.equal(none, model(x, t, dict.fromkeys(whole)))
        for name in whole:
            less = model(x, t, {**whole, name: None})
            assert not torch.allclose(less, found, atol=1e-4), name
            assert not torch.allclose(model(x, t, {name: whole[name]}), none, atol=1e-4), name
        mixed = model(x, t, {**whole, "kind": torch.tensor([0, 3])})
        torch.testing.assert_close(mixed[0], found[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], model(x, t, {**whole, "kind": None})[1], rtol=1e-4, atol=1e-5)
        if sides:
            fine = whole["map"]
            for axis in range(2, fine.ndim):
                fine = fine.repeat_interleave(2, axis)
            torch.testing.assert_close(model(x, t, {**whole, "map": fine}), found, rtol=1e-4, atol=1e-5)


def test_the_scale_of_a_part_is_that_of_its_training():
    """A network of c sees (c - mean) / std: the same weights, told another scale, answer the same for scaled c."""
    torch.manual_seed(0)
    one, other = (Part("c", VECTOR, 1, mean=(mean,), std=(std,)) for mean, std in ((0.0, 1.0), (1e7, 0.5)))
    nets = [MLP(2, width=8, depth=1, parts=(part,)) for part in (one, other)]
    nets[1].load_state_dict(nets[0].state_dict())
    c, x = torch.randn(5, 1, dtype=F64), torch.randn(5, 2)
    a, b = nets[0](x, torch.zeros(5), c), nets[1](x, torch.zeros(5), 1e7 + 0.5 * c)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"kin": 1}, r"^cond: found 'kin'; .*Did you mean 'kind'\?"),
        ({"kind": 3.5}, r"^cond: kind \(3 classes\): found torch.float32; needs whole numbers"),
        ({"kind": 4}, r"^cond: kind \(3 classes\): found 4; the classes are 0 to 2"),
        ({"kind": "cow"}, r"^cond: kind \(3 classes\): found 'cow'; the model has"),
        ({"age": [[1.0, 2.0]]}, r"^cond: age \(1 numbers\): found shape \(1, 2\)"),
        ({"age": [[math.inf], [0.0]]}, r"^cond: age \(1 numbers\): sample 0 has values that are not finite"),
        ({"age": object()}, r"^cond: age \(1 numbers\): found a object; needs numbers"),
        ({"map": torch.zeros(3, 2, 4, 4)}, r"^cond: map \(2 x 4 x 4 numbers\): found shape \(3, 2, 4, 4\)"),
        (torch.zeros(2, 1), r"^cond: found 1 value\(s\); .* give them by name"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused_in_a_line(cond, message):
    model = NetworkDenoiser(MLP(2, width=8, depth=1), SCHEDULE, "v", (2,), parts=PARTS)
    with pytest.raises(UserError, match=message) as error:
        sample(model, 2, "ddim", steps=2, cond=cond)
    assert "\n" not in str(error.value)


def test_fields_are_not_beside_vectors():
    with pytest.raises(UserError, match="a field is joined to data with sides"):
        MLP(2, width=8, depth=1, parts=PARTS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_classes_are_whole_numbers_of_any_type(dtype):
    kind = of_parts(PARTS, {"kind": np.array([2, 0], dtype)}, 2).parts[0]
    assert kind.dtype == torch.int64
    assert kind.tolist() == [2, 0]
    with pytest.raises(UserError, match=r"^cond: kind \(3 classes\): found 200; the classes are 0 to 2"):
        of_parts(PARTS, {"kind": np.array([0, 200], dtype)}, 2)


def test_guidance_towards_none_and_two_classes_at_once_are_refused():
    model = LinearGaussian()
    for cond in ({"c": None}, [None]):
        with pytest.raises(UserError, match=r"^guidance: steers towards a condition"):
            sample(model, 2, "ddim", steps=2, cond=cond, guidance=2.0)
    away = sample(model, 2, "ddim", steps=2, cond={"c": None}, cond_null={"c": M}, guidance=2.0)
    assert not torch.equal(away, sample(model, 2, "ddim", steps=2)), "away from a condition"
    for parts in ((Part("label", CLASSES, 3),), ()):
        model.parts = parts
        with pytest.raises(UserError, match=r"^label, cond: both say 'label'"):
            sample(model, 2, "ddim", steps=2, label=1, cond={"label": 2})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.array(["dog", "cat"]), [1, 0]),
        (np.array([1, 0], ">i4"), [1, 0]),
        (np.array([1, 0, 1])[::-2], [1, 1]),
    ],
)
def test_classes_come_from_arrays_of_words_and_numbers(value, wanted):
    part = Part("kind", CLASSES, 2, names=("cat", "dog"))
    assert of_parts((part,), {"kind": value}, 2).parts[0].tolist() == wanted


def test_vectors_come_from_arrays_of_any_kind_and_not_from_beyond_all_training():
    part = Part("c", VECTOR, 2, mean=(5.0, 0.0), std=(2.0, 1e-3))
    c = np.array([[1.0, 2e-3], [3.0, 4e-3]])
    for same in (c.astype(">f8"), c[::-1][::-1], c.astype(np.longdouble), list(c), list(torch.from_numpy(c))):
        assert torch.equal(of_parts((part,), {"c": same}, 2).parts[0], torch.from_numpy(c))
    with pytest.raises(UserError, match=r"c \(2 numbers\): sample 1 is more than 1e\+06 deviations"):
        of_parts((part,), {"c": [[5.0, 0.0], [5.0, 2e3]]}, 2)
    for none in (torch.zeros(2, 2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(UserError, match=r"c \(2 numbers\): found a tensor of"):
            of_parts((part,), {"c": none}, 2)


def test_a_field_of_images_is_of_bytes_or_of_floats_in_their_range():
    part = Part("seg", FIELD, 1, (2, 2), (0.0,), (1.0,))
    levels = torch.tensor([[[[0, 255], [51, 204]]]], dtype=torch.uint8)
    for given in (levels, levels.numpy(), levels[0]):
        (found,) = of_parts((part,), given, 3).parts
        assert torch.allclose(found, torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]).expand(3, 1, 2, 2), atol=1e-7)
    assert torch.equal(of_parts((part,), found, 3).parts[0], found)
    for wrong in (levels.long(), levels.float(), levels.short()):
        with pytest.raises(UserError, match=r"seg .*: found .*, numbers of 0 to 255; needs uint8, 0 to 255, or floats"):
            of_parts((part,), wrong, 1)
    with pytest.raises(UserError, match=r"mask .*: found torch\.uint8, .*; needs floats in \[-1, 1\]"):
        of_parts((Part("mask", FIELD, 2, (2, 2), (0.0, 0.0), (1.0, 1.0)),), levels.expand(1, 2, 2, 2), 1)
