"""Inputs as people have them: taken as meant, or refused in one line that names the argument."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import encode, load, log_density, log_likelihood, sample, samplers
from diffusion.baselines.entropy import knn_entropy
from diffusion.baselines.gaussianity import gaussianity
from diffusion.denoisers import Denoiser, NetworkDenoiser, exact
from diffusion.denoisers.exact import Labelled
from diffusion.denoisers.guidance import Autoguidance, ClassifierFree, ClassifierGuided, Interval
from diffusion.denoisers.inverse_problems import (
    DPS,
    Blur,
    Downsample,
    Grey,
    Mask,
    MomentMatching,
    Observation,
    PseudoInverse,
)
from diffusion.denoisers.levels import LevelDenoiser
from diffusion.errors import UserError
from diffusion.metrics import density_coverage, find_copies, memorisation, precision_recall
from diffusion.objectives import Objective, draw_u, time_distribution, weighting
from diffusion.schedules import VP, Cosine, time_grid

SHAPE = (1, 8, 8)
draw = partial(sample, sampler="ddim", steps=2)


class Net(nn.Module):
    def __init__(self, wrap=lambda y: y, out=1):
        super().__init__()
        self.c, self.wrap = nn.Conv2d(1, out, 3, padding=1), wrap
        with torch.no_grad():
            for i, value in enumerate(self.parameters()):
                value.copy_(torch.linspace(-0.2, 0.3 + i, value.numel()).reshape(value.shape))

    def forward(self, x, t, labels=None):
        return self.wrap(self.c(x))


class Two(Net):
    def forward(self, x, t):
        return self.c(x)


class ByName(Net):
    def forward(self, x, t, *, class_labels=None):
        return self.c(x)


class LikeDiffusers(Net):
    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return SimpleNamespace(sample=self.c(sample)) if return_dict else (self.c(sample),)


class Embedded(nn.Module):
    """Three classes and none, for data in the plane."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(4, 2)
        with torch.no_grad():
            self.e.weight.copy_(torch.arange(8.0).reshape(4, 2))

    def forward(self, x, c, labels=None):
        return x + self.e(labels)


class WithOtherTypes(Net):
    """A counter and a small table in double precision before the weights."""

    def __init__(self):
        super().__init__()
        own = dict(self._parameters), dict(self._modules)
        self._modules.clear()
        self.count = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        self.table = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self._modules.update(own[1])


def denoiser(net, **options):
    return NetworkDenoiser(net, Cosine(), prediction="v", shape=SHAPE, **options)


def closure():
    two = Two()
    return lambda x, c: two(x, c)


NETWORKS = {
    "(x, t)": Two,
    "a tuple": lambda: Net(lambda y: (y, None)),
    "a list": lambda: Net(lambda y: [y]),
    ".sample": lambda: Net(lambda y: SimpleNamespace(sample=y)),
    "a dict": lambda: Net(lambda y: {"sample": y}),
    "labels by name": ByName,
    "diffusers": LikeDiffusers,
    "a bound method": lambda: Two().forward,
    "a function": closure,
    "a partial": lambda: partial(LikeDiffusers(), return_dict=False),
    "within another module": lambda: nn.DataParallel(Two()),
    "compiled": lambda: torch.compile(Two(), backend="eager"),
    "other types": WithOtherTypes,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", NETWORKS)
def test_networks_as_people_have_them(what):
    expected = draw(denoiser(Net()), 2)
    model = denoiser(NETWORKS[what]())
    assert torch.equal(draw(model, 2), expected)
    x = torch.zeros(2, *SHAPE)
    here = log_density(model, x, trace="hutchinson", tolerance=1e-2).log_prob
    there = log_density(denoiser(Net()), x, trace="hutchinson", tolerance=1e-2).log_prob
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Net(lambda y: None), "network: returned a NoneType"),
        (Net(lambda y: {"out": y}), "network: returned a dict"),
        (Net(lambda y: torch.distributions.Normal(0.0, 1.0)), "network: returned a Normal"),
        (Net(lambda y: y.long()), r"network: returned numbers of type torch\.int64"),
        (nn.Conv2d(1, 1, 1), r"network: takes \(input\)"),
        (Net(lambda y: y[:, 0]), r"network: returned \(2, 8, 8\) for x of shape \(2, 1, 8, 8\)"),
        (Net(lambda y: y.mean((2, 3), keepdim=True)), r"network: returned \(2, 1, 1, 1\)"),
        (Net(lambda y: y[:1]), r"network: returned \(1, 1, 8, 8\)"),
        (Net(out=2), "return the first half"),
    ],
)
def test_networks_that_are_refused_at_their_first_call(net, told):
    model = denoiser(net)
    x = torch.zeros(2, *SHAPE)
    loss = Objective(weighting("elbo", Cosine()), time_distribution("log-snr"))
    calls = [
        lambda: draw(model, 2),
        lambda: loss(model, x, draw_u(0, 0, torch.arange(2), 2, stratified=True), x),
        lambda: log_density(model, x),
        lambda: model.v(x, torch.tensor(0.5)),
    ]
    for call in calls:
        with pytest.raises(UserError, match=told) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_own_denoiser_of_another_shape():
    class Mean(Denoiser):
        schedule, shape = VP(), (2,)

        def forward(self, x_t, t, cond=None):
            return x_t.mean(1, keepdim=True)

    for call in (lambda: draw(Mean(), 3), lambda: log_density(Mean(), torch.zeros(3, 2))):
        with pytest.raises(UserError, match=r"Mean: returned \(3, 1\) for x of shape \(3, 2\)"):
            call()


def test_levels_ask_for_their_own_shape():
    places = torch.linspace(-1, 1, 4)
    model = LevelDenoiser(Net(), Cosine(), places, SHAPE)
    with pytest.raises(UserError, match=r"it must return \(2, 4, 8, 8\)"):
        draw(model, 2)
    assert draw(LevelDenoiser(Net(out=4), Cosine(), places, SHAPE), 2).shape == (2, *SHAPE)


def test_a_condition_that_a_network_does_not_take():
    with pytest.raises(UserError, match="network: takes"):
        draw(denoiser(Two(), num_classes=3), 2, label=1)


PLANE = exact.Gaussian([0.1, 0.2], np.array([0.5, 0.4]), VP())
LEVELS = exact.Gaussian(torch.zeros(1, 4, 4), 0.5, VP())
X = torch.linspace(-1, 1, 6).reshape(3, 2)
IMAGES = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)


LABELLED = NetworkDenoiser(Net(), Cosine(), prediction="v", shape=SHAPE, num_classes=3)


def test_a_denoiser_takes_numbers_arrays_and_lists():
    """A call of the denoiser itself: times as numbers, data of other libraries, labels of any whole type."""
    x, half = X[:2], torch.tensor(0.5)
    torch.testing.assert_close(PLANE(x.double().numpy(), 0.5), PLANE(x.double(), half))
    assert torch.equal(PLANE(x, 1), PLANE(x, torch.ones(2)))
    torch.testing.assert_close(PLANE.score(x, 0.5), PLANE.score(x, half))
    torch.testing.assert_close(PLANE.log_prob(x.half()), PLANE.log_prob(x.half().float()))
    inside = x.clone().requires_grad_()
    assert PLANE.log_prob(inside).requires_grad
    embedded = NetworkDenoiser(Embedded(), Cosine(), prediction="v", shape=(2,), num_classes=3)
    wanted = embedded(x, half, torch.tensor([1, 3]))
    kinds = (
        [1, 3],
        np.array([1, 3]),
        torch.tensor([[1], [3]]),
        torch.tensor([1.0, 3.0]),
        torch.tensor([1, 3]).to(torch.uint8),
    )
    for cond in kinds:
        torch.testing.assert_close(embedded(x, 0.5, cond), wanted)
    torch.testing.assert_close(embedded(x, 0.5, 1)[0], wanted[0])


def test_masks_of_pictures_and_of_other_libraries():
    kept = torch.arange(64).reshape(SHAPE) % 3 == 0
    x = torch.randn(2, *SHAPE)
    for mask in (kept.numpy(), kept.tolist(), kept.float(), kept.int(), kept.to(torch.uint8) * 255):
        assert torch.equal(Mask(mask)(x), Mask(kept)(x))
    assert torch.equal(Downsample(np.int64(2))(x), Downsample(2)(x))
    assert torch.equal(Grey(np.array([0.5]))(x), 0.5 * x)


def test_guidance_and_observations_take_trained_models_and_two_numbers():
    model = SimpleNamespace(denoiser=LABELLED)
    guided = ClassifierFree(model, np.float32(2.0), (0.1, 1.0))
    assert torch.equal(draw(guided, 2, label=1), draw(ClassifierFree(LABELLED, 2.0, Interval(0.1, 1.0)), 2, label=1))
    assert torch.equal(draw(DPS(SimpleNamespace(denoiser=PLANE), SEEN), 2), draw(DPS(PLANE, SEEN), 2))


def test_a_classifier_steers_samples_of_no_class_nowhere():
    """The label that stands for none, sample by sample: E[x | x_t] there, and the guided one elsewhere."""
    guided = ClassifierGuided(PLANE, lambda x, t: torch.stack([x.sum(1), -x.sum(1)], 1), 2)
    x, t = X[:2], torch.tensor(0.5)
    found = guided(x, t, torch.tensor([2, 0]))
    torch.testing.assert_close(found[0], PLANE(x, t)[0])
    torch.testing.assert_close(found[1], guided(x, t, torch.tensor([0, 0]))[1])
    assert float((found[1] - PLANE(x, t)[1]).abs().min()) > 1e-3


def test_a_denoiser_is_mapped_and_differentiated():
    """Samples one by one, with times and labels of their own, are those of a batch."""
    times, labels = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 1, 0])
    one = torch.func.vmap(lambda x, t: PLANE(x[None], t)[0])(X, times)
    torch.testing.assert_close(one, PLANE(X, times))
    law = exact.Gaussian([1.0, -1.0], 0.5, VP())
    both = Labelled([PLANE, law])
    one = torch.func.vmap(lambda x, t, y: both(x[None], t, y[None])[0])(X, times, labels)
    torch.testing.assert_close(one, both(X, times, labels))
    matrix = torch.func.jacrev(lambda x: PLANE(x[None], torch.tensor(0.5))[0])(X[0])
    assert torch.equal(matrix, matrix.diag().diag())


def test_the_loss_of_half_precision_is_computed_in_single():
    x = torch.full((4, 2), 0.3).half()
    assert torch.equal(losses(x=x).weighted, losses(x=x.float()).weighted)


def test_rows_are_numbered_by_any_library():
    of = partial(log_likelihood, LEVELS, IMAGES, "elbo", evaluations=2)
    wanted = of(indices=torch.tensor([3, 5])).log_prob
    for indices in ([3, 5], np.array([3, 5]), torch.tensor([3.0, 5.0])):
        assert torch.equal(of(indices=indices).log_prob, wanted)
    assert torch.equal(of(seed=None, dequantize=None).log_prob, of().log_prob)
    assert torch.equal(of(levels=np.int64(256)).log_prob, of().log_prob)


def test_arrays_lists_and_words_are_taken_as_meant():
    assert torch.equal(draw(PLANE, np.int64(3)), draw(PLANE, 3))
    for noise in (X.numpy(), X.tolist(), X.clone().requires_grad_(), X.T.contiguous().T, X.double()):
        torch.testing.assert_close(draw(PLANE, 3, noise=noise).float(), draw(PLANE, 3, noise=X))
    for word in ("float64", "torch.float64", "double", np.float64, torch.float64):
        assert draw(PLANE, 1, dtype=word).dtype == torch.float64
    times = np.linspace(1, 0, 5)
    assert torch.equal(sample(PLANE, 2, "ddim", grid=times), sample(PLANE, 2, "ddim", grid=torch.tensor(times)))
    torch.testing.assert_close(log_density(PLANE, X.numpy()).log_prob, log_density(PLANE, X).log_prob)
    measured = log_likelihood(LEVELS, IMAGES, tolerance=1e-2).log_prob
    for images in (IMAGES.long(), IMAGES.numpy(), IMAGES.to(torch.int16), IMAGES.tolist()):
        assert torch.equal(log_likelihood(LEVELS, images, tolerance=1e-2).log_prob, measured)
    torch.testing.assert_close(encode(PLANE, X.tolist(), "ddim", steps=4), encode(PLANE, X, "ddim", steps=4))
    z = np.random.default_rng(0).normal(size=(30, 2))
    assert float(knn_entropy(z)) == float(knn_entropy(torch.tensor(z)))
    assert float(knn_entropy(z.tolist())) == pytest.approx(float(knn_entropy(torch.tensor(z))), abs=1e-5)
    model = denoiser(Net(), num_classes=3)
    for label in (1.0, np.int64(1), [1, 1], np.array([1, 1]), torch.tensor([1, 1], dtype=torch.int32)):
        assert torch.equal(draw(model, 2, label=label), draw(model, 2, label=1))


REFUSED = [
    ("n", lambda: sample(PLANE, 2.0)),
    ("n", lambda: sample(PLANE, True)),
    ("seed", lambda: draw(PLANE, 1, seed=0.5)),
    ("steps", lambda: sample(PLANE, 1, "ddim", steps="5")),
    ("batch_size", lambda: draw(PLANE, 1, batch_size=1.5)),
    ("dtype", lambda: draw(PLANE, 1, dtype="float16")),
    ("noise", lambda: draw(PLANE, 3, noise=X * float("nan"))),
    ("noise", lambda: draw(PLANE, 3, noise="noise")),
    ("guidance", lambda: draw(denoiser(Net(), num_classes=3), 1, label=1, guidance="2")),
    ("label", lambda: draw(denoiser(Net(), num_classes=3), 1, label=0.7)),
    ("label", lambda: draw(denoiser(Net(), num_classes=3), 1, label=True)),
    ("label", lambda: draw(denoiser(Net(), num_classes=3), 2, label=torch.tensor([0.2, 0.9]))),
    ("model", lambda: sample("pretrained:digits", 1)),
    ("model", lambda: sample(Net(), 1)),
    ("images", lambda: log_likelihood(LEVELS, torch.rand(2, 1, 4, 4))),
    ("images", lambda: log_likelihood(LEVELS, IMAGES.long() + 300)),
    ("images", lambda: log_likelihood(LEVELS, -IMAGES.long() - 1)),
    ("images", lambda: log_likelihood(LEVELS, IMAGES > 3)),
    ("images", lambda: log_likelihood(LEVELS, IMAGES[:0])),
    ("x", lambda: log_density(PLANE, X * float("inf"))),
    ("x", lambda: log_density(PLANE, X.long())),
    ("x", lambda: encode(PLANE, X[:0])),
    ("probes", lambda: log_density(PLANE, X, trace="hutchinson", probes=1.5)),
    ("z", lambda: knn_entropy("z")),
    ("k", lambda: knn_entropy(X, k=1.5)),
    ("mean", lambda: exact.Gaussian("a", 1.0, VP())),
    ("data", lambda: exact.Empirical([[1, 2], [3]], VP())),
    ("cond", lambda: draw(denoiser(Net()), 4, cond=torch.zeros(3, 2))),
    ("x_t", lambda: PLANE(torch.zeros(4, 1), torch.tensor(0.5))),
    ("seed", lambda: draw(PLANE, 1, seed=2**64)),
    ("start", lambda: draw(PLANE, 1, start=2**48)),
    ("guidance_interval", lambda: draw(LABELLED, 1, label=1, guidance=2, guidance_interval=3)),
    ("guidance_interval", lambda: draw(LABELLED, 1, label=1, guidance=2, guidance_interval=("low", "high"))),
    ("size", lambda: draw(LABELLED, 1, size=8.5)),
    ("callback", lambda: draw(PLANE, 1, callback="print")),
    ("progress", lambda: log_density(PLANE, X, progress=3)),
    ("noise", lambda: draw(PLANE, 3, noise=torch.zeros(3, 2, device="meta"))),
    ("noise", lambda: draw(PLANE, 3, noise=torch.zeros(3, 2).to_sparse())),
    ("label", lambda: draw(LABELLED, 1, label=float("inf"))),
    ("indices", lambda: log_likelihood(LEVELS, IMAGES, indices=[0, -1])),
    ("indices", lambda: log_likelihood(LEVELS, IMAGES, indices=[0.5, 1])),
    ("levels", lambda: log_likelihood(LEVELS, IMAGES, levels="256")),
    ("dequantize", lambda: log_likelihood(LEVELS, IMAGES, method="elbo", dequantize="no")),
    ("error_budget", lambda: log_likelihood(LEVELS, IMAGES, error_budget="yes")),
    ("target_error", lambda: log_likelihood(LEVELS, IMAGES, target_error=True)),
    ("times", lambda: log_likelihood(LEVELS, IMAGES, method="elbo-discrete", times="all")),
    ("cond", lambda: encode(LABELLED, torch.zeros(1, *SHAPE), "ddim", steps=2, cond=7)),
    ("sampler", lambda: encode(PLANE, X, 3)),
    ("log_snr_end", lambda: encode(PLANE, X, "ddim", steps=2, log_snr_end="9")),
    ("n", lambda: PLANE.draw(2.5)),
    ("x", lambda: PLANE.log_prob(X.long())),
    ("x_t", lambda: PLANE(X.long(), torch.tensor(0.5))),
    ("x_t", lambda: LABELLED(torch.zeros(2, 3, 8, 8), 0.5)),
    ("t", lambda: PLANE(X, 500)),
    ("t", lambda: PLANE(X, torch.tensor([500.0, 20.0, 0.0]))),
    ("t", lambda: PLANE(X, torch.tensor([0.5, 0.5]))),
    ("t", lambda: PLANE(X, torch.full((3, 1), 0.5))),
    ("t", lambda: PLANE.log_prob_at(X, 1.5)),
    ("cond", lambda: LABELLED(torch.zeros(2, *SHAPE), 0.5, torch.tensor([0, 4]))),
    ("cond", lambda: LABELLED(torch.zeros(2, *SHAPE), 0.5, torch.tensor([0, -1]))),
    ("cond", lambda: LABELLED(torch.zeros(2, *SHAPE), 0.5, [0, 1, 2])),
    ("cond", lambda: LABELLED(torch.zeros(2, *SHAPE), 0.5, [True, False])),
    ("x", lambda: losses(x=torch.zeros(4, 2, dtype=torch.uint8))),
    ("u", lambda: losses(u=torch.full((4,), 2.0))),
    ("schedule", lambda: weighting("elbo", "cosine")),
    ("objective.time_std", lambda: time_distribution("log-normal", std=float("nan"))),
    ("objective.time_mean", lambda: losses(times=time_distribution("log-normal", mean=1e3))),
    ("sigma_data", lambda: denoiser(Net(), sigma_data="1")),
    ("num_classes", lambda: denoiser(Net(), num_classes=2.5)),
    ("mask", lambda: Mask(torch.full(SHAPE, 0.5))),
    ("mask", lambda: Mask(torch.full(SHAPE, float("nan")))),
    ("mask", lambda: Mask("mask.png")),
    ("factor", lambda: Downsample(2.5)),
    ("factor", lambda: Downsample(True)),
    ("weights", lambda: Grey((0.3, float("nan")))),
    ("floor", lambda: Blur(1.0, floor=2.0)),
    ("std", lambda: Blur("1")),
    ("operator", lambda: Observation("blur", torch.zeros(1, 2))),
    ("operator", lambda: Observation(lambda x: x, torch.zeros(1, 2))),
    ("observation", lambda: DPS(PLANE, torch.zeros(1, 2))),
    ("scale", lambda: DPS(PLANE, SEEN, scale=float("nan"))),
    ("scale", lambda: DPS(PLANE, SEEN, scale=-1)),
    ("iterations", lambda: MomentMatching(PLANE, SEEN, iterations=1.5)),
    ("tolerance", lambda: MomentMatching(PLANE, SEEN, tolerance="0.1")),
    ("data_std", lambda: PseudoInverse(PLANE, SEEN, data_std="1")),
    ("denoiser", lambda: DPS("pretrained:digits", SEEN)),
    ("denoiser", lambda: ClassifierFree(Net(), 2.0)),
    ("guidance_interval", lambda: ClassifierFree(LABELLED, 2.0, "all")),
    ("guide", lambda: Autoguidance(PLANE, "runs/small-0001", 2.0)),
    ("classifier", lambda: ClassifierGuided(PLANE, "digits", 3)),
    ("num_classes", lambda: ClassifierGuided(PLANE, lambda x, t: x, -1)),
    ("steps", lambda: time_grid(VP(), 2.5)),
    ("schedule", lambda: time_grid("vp", 5)),
    ("model", lambda: load(None)),
    ("device", lambda: load("pretrained:digits", device="tpu")),
    ("codes", lambda: gaussianity(torch.full((9, 2), float("nan")))),
    ("features", lambda: precision_recall(X.numpy(), X)),
    ("features", lambda: precision_recall(torch.rand(9, 2), torch.rand(9, 3))),
    ("k", lambda: density_coverage(torch.rand(9, 2), torch.rand(9, 2), k=2.5)),
    ("memorisation", lambda: memorisation(X * float("nan"), X, X)),
    ("memorisation", lambda: memorisation(X[:, :1], X, X)),
    ("quantile", lambda: memorisation(X, X, X, quantile=2.0)),
    ("samples", lambda: find_copies(IMAGES / 255, IMAGES)),
    ("samples", lambda: find_copies(IMAGES[:, :, :2], IMAGES)),
]
SEEN = Observation(Mask(torch.tensor([True, False])), torch.zeros(1, 1))


def losses(x=None, u=None, times=None):
    objective = Objective(weighting("elbo", VP()), times or time_distribution("log-snr"))
    u = torch.linspace(0.1, 0.9, 4) if u is None else u
    return objective(PLANE, torch.zeros(4, 2) if x is None else x, u, torch.ones(4, 2))


@pytest.mark.parametrize(("argument", "call"), REFUSED)
def test_the_argument_is_named(argument, call):
    with pytest.raises(UserError, match=rf"^{argument}\b.*: ") as error:
        call()
    assert "\n" not in str(error.value)


class Vector(nn.Module):
    """Three numbers a sample."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(5, 2)

    def forward(self, x, c, y=None):
        y = torch.zeros(len(x), 3) if y is None else torch.cat(y, 1) if isinstance(y, tuple) else y
        return self.l(torch.cat([x, y.to(x)], 1))


@pytest.fixture
def vector():
    torch.manual_seed(0)
    return NetworkDenoiser(Vector(), Cosine(), prediction="v", shape=(2,)), torch.randn(4, 3)


@pytest.mark.parametrize("name", samplers.names())
def test_a_network_has_its_own_condition(vector, name):
    model, y = vector
    together = sample(model, 4, name, steps=3, cond=y)
    one_by_one = [sample(model, 1, name, steps=3, cond=y[i : i + 1], start=i) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-3, atol=1e-3)
    in_parts = sample(model, 4, name, steps=3, cond=(y[:, :1], y[:, 1:]), batch_size=3)
    torch.testing.assert_close(together, in_parts, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together, sample(model, 4, name, steps=3), atol=1e-2)


def test_guidance_towards_a_condition(vector):
    """x_hat is affine in the condition here: weight w is the condition w times as far from the null."""
    model, y = vector
    null = torch.randn(1, 3)
    guided = draw(model, 4, cond=y, guidance=2.5, cond_null=null)
    torch.testing.assert_close(guided, draw(model, 4, cond=null + 2.5 * (y - null)), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="cond_null"):
        draw(model, 4, cond=y, guidance=2.0)


@pytest.mark.parametrize("method", ["ode", "elbo", "immse"])
def test_a_likelihood_given_a_condition(vector, method):
    model, y = vector
    x = torch.randn(4, 2)
    whole = log_density(model, x, method=method, cond=y, batch_size=3)
    part = log_density(model, x[2:], method=method, cond=(y[2:, :2], y[2:, 2:]), indices=torch.tensor([2, 3]))
    torch.testing.assert_close(whole.log_prob[2:], part.log_prob, rtol=1e-4, atol=1e-3)


def test_inference_mode_is_as_no_grad():
    y = torch.zeros(1, 1, 4, 4)
    images = exact.Gaussian(torch.zeros(SHAPE), 0.5, VP())
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier

        def forward(self, x, t):
            return self.inner(x)

    seen = Observation(Downsample(2), y)
    calls = [
        lambda: draw(images, 2),
        lambda: draw(MomentMatching(images, seen), 2),
        lambda: draw(DPS(images, seen), 2),
        lambda: PseudoInverse(images, seen)(torch.zeros(2, *SHAPE), torch.tensor([0.5, 0.6])),
        lambda: draw(ClassifierGuided(images, Classifier(), 2), 2, label=1),
        lambda: log_density(PLANE, X + 0.0).log_prob,
        lambda: log_likelihood(LEVELS, IMAGES + 0, tolerance=1e-2).log_prob,
        lambda: sample(PLANE, 3, noise=X * 1.0),
    ]
    for call in calls:
        with torch.inference_mode():
            inside = call()
        with torch.no_grad():
            torch.testing.assert_close(inside, call())
        assert not inside.is_inference()
    with torch.inference_mode():
        x = X + 0.0
    assert torch.isfinite(log_density(PLANE, x).log_prob).all(), "what was made in inference mode, outside of it"


class Blown(nn.Module):
    def forward(self, x, c):
        return x * 1e30


@pytest.mark.parametrize("name", samplers.names())
def test_samples_that_are_not_finite_are_told(name):
    model = NetworkDenoiser(Blown(), Cosine(), prediction="v", shape=(2,))
    with pytest.raises(UserError, match=r"not finite|could not go on|gave up") as error:
        sample(model, 2, name, steps=8)
    assert "\n" not in str(error.value)


def test_the_step_is_named():
    model = NetworkDenoiser(Blown(), Cosine(), prediction="v", shape=(2,))
    with pytest.raises(UserError, match=r"DDIM made samples that are not finite, first in step 2 of 8"):
        sample(model, 2, "ddim", steps=8)


@pytest.mark.parametrize("method", ["ode", "elbo", "immse"])
def test_a_figure_that_is_not_finite_is_none(method):
    model = NetworkDenoiser(lambda x, c: x * float("nan"), Cosine(), prediction="v", shape=(2,))
    with pytest.raises(UserError, match=r"not finite|is nan"):
        log_density(model, X, method=method)


def test_labels_given_as_a_condition_are_held_against_the_classes():
    model = NetworkDenoiser(Net(), Cosine(), prediction="v", shape=SHAPE, num_classes=4)
    for label in ([9, 9, 9], [4, 4, 4], [0, 1], torch.eye(3)):
        with pytest.raises(UserError, match=r"^cond: "):
            log_density(model, torch.zeros(3, *SHAPE), cond=label)
        with pytest.raises(UserError, match=r"^cond: "):
            draw(model, 3, cond=label)
    with pytest.raises(UserError, match=r"^label: found shape \(4, 4\)"):
        draw(model, 4, label=torch.eye(4))


def test_a_null_condition_is_of_the_kind_of_the_condition(vector):
    model, y = vector
    for null, guidance in ((torch.zeros(1, 2), 2.0), ((y[:, :1], y[:, 1:]), 2.0), (torch.zeros(2, 3), 2.0), (y, 1.0)):
        with pytest.raises(UserError, match=r"^cond_null: "):
            draw(model, 4, cond=y, guidance=guidance, cond_null=null)
    null = torch.randn(4, 3)
    guided = draw(model, 4, cond=y, guidance=2.5, cond_null=null, batch_size=3)
    torch.testing.assert_close(guided, draw(model, 4, cond=null + 2.5 * (y - null)), rtol=1e-4, atol=1e-4)
    needs = NetworkDenoiser(lambda x, c, cond: x + cond, Cosine(), prediction="v", shape=(2,))
    with pytest.raises(UserError, match=r"^cond: the network failed without a condition"):
        draw(needs, 4)


def test_conditions_made_in_inference_mode(vector):
    model, y = vector
    with torch.inference_mode():
        parts = (y[:, :1] + 0, y[:, 1:] + 0)
    assert torch.isfinite(log_density(model, torch.zeros(4, 2), cond=parts).log_prob).all()
