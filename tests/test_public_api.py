"""The names that users call, with their arguments; and what importing them costs."""

import inspect
import math
import os
import subprocess
import sys

import pytest
import torch
from tiny_configs import digits_config

import diffusion
from diffusion.config import dump_config
from diffusion.denoisers import exact
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import FACTS
from diffusion.schedules import VP
from diffusion.storage import tensor_files

# What is public, and how outside checks call it: names, then defaults that are promised.
SIGNATURES = {
    "load": ({"path_or_name"}, {}),
    "sample": (
        {"model", "n", "steps", "grid", "label", "guidance", "noise"},
        {"sampler": "abm", "seed": 0, "eta": None, "dtype": None},
    ),
    "log_likelihood": ({"model", "images_uint8"}, {"method": "ode"}),
    "log_density": ({"model", "x"}, {"method": "ode"}),
}


def python(code: str, folder) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_calls_take_what_is_promised(name):
    names, defaults = SIGNATURES[name]
    parameters = inspect.signature(getattr(diffusion, name)).parameters
    assert names <= parameters.keys()
    assert {key: parameters[key].default for key in defaults} == defaults


def test_the_rooms_and_calls_are_reached_by_attribute():
    assert set(dir(diffusion)) == set(diffusion.__all__)
    for name in diffusion.__all__:
        assert getattr(diffusion, name) is not None
    for name in ("VP", "Cosine", "SubVP", "VE", "EDM", "Rectified"):
        alpha, sigma = getattr(diffusion.schedules, name)()(torch.tensor([0.3, 0.6]))
        assert alpha.shape == sigma.shape == (2,)
    for name in ("Gaussian", "GaussianMixture", "Empirical"):
        assert callable(getattr(diffusion.denoisers.exact, name).log_prob)
        assert callable(getattr(diffusion.denoisers.exact, name).draw)
    assert "ode" in diffusion.samplers.names()
    assert callable(diffusion.baselines.entropy.knn_entropy)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = diffusion.lod


def test_likelihoods_refuse_what_they_do_not_take_by_name():
    denoiser = exact.Gaussian(torch.zeros(1, 2, 2), 1.0, VP())
    images, x = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, 1, 2, 2)
    with pytest.raises(UserError, match="a likelihood is of levels, 0 to 255"):
        diffusion.log_likelihood(denoiser, x)
    expected = diffusion.log_likelihood(denoiser, images, method="elbo").log_prob
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.int64):
        assert torch.equal(diffusion.log_likelihood(denoiser, images.to(dtype), method="elbo").log_prob, expected)
        with pytest.raises(UserError, match="found levels 0 to 300; accepted: 0 to 255"):
            diffusion.log_likelihood(denoiser, torch.tensor([0, 300]).to(dtype).reshape(2, 1, 1, 1).expand(2, 1, 2, 2))
    with pytest.raises(UserError, match=r"method: 'oed'.*Did you mean 'ode'"):
        diffusion.log_likelihood(denoiser, images, method="oed")
    with pytest.raises(UserError, match=r"method: 'elbow'.*Did you mean 'elbo'"):
        diffusion.log_density(denoiser, x, method="elbow")
    with pytest.raises(UserError, match=r"probs: not an option of log_likelihood_ode; it takes: .*probes"):
        diffusion.log_likelihood(denoiser, images, probs=2)
    with pytest.raises(UserError, match="trce: not an option of log_density; it takes: trace"):
        diffusion.log_density(denoiser, x, trce="exact")


def test_every_method_measures_a_bare_denoiser_and_says_its_kind():
    denoiser = exact.Gaussian(torch.zeros(1, 1, 2), 0.5, VP())
    images = torch.tensor([[[[3, 12]]]], dtype=torch.uint8)
    kinds = {}
    for method, options in (("ode", {}), ("elbo", {"evaluations": 64}), ("elbo-discrete", {"steps": 30})):
        estimate = diffusion.log_likelihood(denoiser, images, method=method, levels=17, **options)
        assert estimate.levels == 17
        kinds[method] = estimate.kind
        # of two of 17 levels, each of width 2 / 17: close to the density at their centres times the widths
        centres = (2 * images.double() + 1) / 17 - 1
        expected = float(denoiser.log_prob(centres)[0] + 2 * math.log(2 / 17))
        found = float(estimate.log_prob[0])
        assert found == pytest.approx(expected, abs=0.3) if method == "ode" else found < expected, method
    assert kinds == {"ode": "lower bound", "elbo": "lower bound", "elbo-discrete": "lower bound"}


def test_importing_the_package_and_reading_arguments_loads_no_torch(tmp_path):
    code = """
import sys
import diffusion, diffusion.commands.app
from diffusion.commands.sample.arguments import parse_sample_arguments
from diffusion.config import parse_train_arguments
parse_sample_arguments(["--sampler", "ode"])
parse_train_arguments(["--config", "digits", "trainer.steps=3"])
print(sorted({"torch", "lightning", "wandb", "sklearn", "torchvision", "matplotlib"} & set(sys.modules)))
"""
    assert python(code, tmp_path).strip() == "[]"


def test_loading_and_sampling_import_nothing_of_training_or_data(tmp_path):
    config, facts = digits_config(tmp_path), DataFacts("digits", (1, 8, 8), 17, 10)
    tensor_files.save_model(
        tmp_path / "m.safetensors",
        build_denoiser(config, facts).state_dict(),
        dump_config(config),
        {FACTS: facts.to_json()},
    )
    code = """
import sys
import diffusion
x = diffusion.sample(diffusion.load("m.safetensors"), 2, "ddim", steps=2)
assert x.shape == (2, 1, 8, 8)
assert callable(diffusion.baselines.entropy.knn_entropy)  # with nothing else imported
assert callable(diffusion.denoisers.exact.Empirical)
assert callable(diffusion.ema.Average)
print(sorted({"lightning", "scipy", "wandb", "sklearn", "torchvision", "matplotlib"} & set(sys.modules)))
"""
    assert python(code, tmp_path).strip() == "[]"
