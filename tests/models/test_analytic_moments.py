"""The moments of Analytic-DPM are kept beside the model's file, for its very weights."""

import json

from laws import gaussian

from diffusion.denoisers import exact
from diffusion.models.tuning_cache import moments_of
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
