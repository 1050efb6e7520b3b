"""The moments of Analytic-DPM are kept beside the model's file, for its very weights."""

import json

import torch
from laws import gaussian
from tiny_configs import toy_config

from diffusion.denoisers import exact
from diffusion.models.build import DataFacts
from diffusion.models.load import DiffusionModel
from diffusion.models.tuning_cache import moments_of
from diffusion.samplers import Ancestral
from diffusion.schedules import VP


def test_estimated_once_for_the_weights_they_belong_to(tmp_path, monkeypatch):
    model, source = exact.Gaussian(0.1, 0.4, VP()), tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    first = moments_of(model, str(source), 1.0)
    kept = tmp_path / "model.moments.json"
    assert first.error_bound == 1.0
    assert json.loads(kept.read_text())["values"] == list(first.values)

    def never(*args):
        raise AssertionError("estimated again")

    with monkeypatch.context() as context:
        context.setattr("diffusion.models.tuning_cache.estimate_moments", never)
        assert moments_of(model, str(source), 1.0) == first
    other = moments_of(exact.Gaussian(0.1, 0.8, VP()), str(source), 1.0)
    assert other.values != first.values
    kept.write_text("{")
    assert moments_of(model, str(source), 1.0) == first


def test_a_model_without_a_file_keeps_none(tmp_path):
    moments_of(gaussian(VP()), str(tmp_path / "none.safetensors"), 1.0)
    assert not list(tmp_path.iterdir())


def test_a_sampler_given_as_an_object_also_takes_the_moments_of_the_model(tmp_path):
    model = DiffusionModel(gaussian(VP()), toy_config(tmp_path), DataFacts("points", gaussian(VP()).shape, None, 0))
    by_name = model.sample(4, sampler="ancestral", variance="analytic", steps=3)
    assert torch.equal(model.sample(4, sampler=Ancestral("analytic", steps=3)), by_name)
    assert not torch.equal(model.sample(4, sampler=Ancestral(steps=3)), by_name)
    *_, last = model.trajectory(4, sampler=Ancestral("analytic"), steps=3)[0]
    assert torch.equal(last, by_name)
