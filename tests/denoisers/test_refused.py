"""What cannot be meant is refused in one line that names the argument, and no result is not finite."""

import pytest
import torch
from given_models import IMAGES, LABELLED, LEVELS, PLANE, SEEN, SHAPE, Net, X, denoiser, draw, losses
from torch import nn

from diffusion import encode, load, log_density, log_likelihood, sample, samplers
from diffusion.baselines.entropy import knn_entropy
from diffusion.baselines.gaussianity import gaussianity
from diffusion.denoisers import NetworkDenoiser, exact
from diffusion.denoisers.guidance import Autoguidance, ClassifierFree, ClassifierGuided
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
from diffusion.errors import UserError
from diffusion.metrics import density_coverage, find_copies, memorisation, precision_recall
from diffusion.objectives import time_distribution, weighting
from diffusion.schedules import VP, Cosine, time_grid

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


@pytest.mark.parametrize(("argument", "call"), REFUSED)
def test_the_argument_is_named(argument, call):
    with pytest.raises(UserError, match=rf"^{argument}\b.*: ") as error:
        call()
    assert "\n" not in str(error.value)


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
