"""A model is what its file says: found by folder, name or file, checked, and the same wherever it comes from."""

import json
import re

import pytest
import torch
from tiny_configs import digits_config, toy_config

from diffusion.config import dump_config
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser, parameter_count
from diffusion.models.load import FACTS, DiffusionModel, GenerativeModel, load
from diffusion.storage import runs, tensor_files

DIGITS = DataFacts("digits", (1, 8, 8), 17, 10, {"source": "scikit-learn", "train_images": 1438})
POINTS = DataFacts("gaussians", (2,), None, 0)


def write(folder, config, facts, **metadata):
    """A run folder with fresh weights, and the weights."""
    torch.manual_seed(0)
    weights = build_denoiser(config, facts).state_dict()
    run = runs.create_run(folder, "tiny")
    entries = {FACTS: facts.to_json(), "step": "12", **metadata}
    tensor_files.save_model(
        run / runs.MODEL, weights, dump_config(config), {k: v for k, v in entries.items() if v is not None}
    )
    checkpoint = {"model": {**entries, "config": dump_config(config)}, "weight_average": {"averages": [weights]}}
    torch.save(checkpoint, run / runs.CHECKPOINTS / "last.ckpt")
    return run, weights


@pytest.fixture
def digits(tmp_path):
    return write(tmp_path, digits_config(tmp_path), DIGITS)


def test_a_run_a_name_a_file_and_a_checkpoint_are_the_same_model(digits, tmp_path):
    run, weights = digits
    checkpoint = f"{runs.CHECKPOINTS}/last.ckpt"
    places = [run, str(run), run / runs.MODEL, run / checkpoint, "tiny-0001", f"tiny-0001/{checkpoint}"]
    for place in places:
        model = load(place, runs_dir=tmp_path)
        assert isinstance(model, GenerativeModel)
        assert (model.facts, model.step, model.config) == (DIGITS, 12, digits_config(tmp_path))
        assert not model.denoiser.training
        assert model.denoiser.shape == (1, 8, 8)
        assert model.dequantizer is not None
        assert model.dequantizer.levels == 17
        for name, tensor in model.denoiser.state_dict().items():
            assert torch.equal(tensor, weights[name]), (place, name)
    first, second = repr(load(run)).splitlines()
    assert "family 'diffusion'" in first
    assert re.search(r"shape \(1, 8, 8\), 17 levels, path \w+\(.*\), [\d,]+ parameters", second)


def test_a_pretrained_model_is_loaded_by_name(digits, monkeypatch):
    run, _ = digits
    (run / runs.MODEL).rename(run / "small.safetensors")
    monkeypatch.setattr(runs, "PRETRAINED", run)
    assert load("pretrained:small").facts == DIGITS
    with pytest.raises(UserError, match="Did you mean 'pretrained:small'"):
        load("pretrained:smal")


@pytest.mark.parametrize("name", runs.shipped_models())
def test_a_shipped_model_finds_its_data_on_any_machine(name):
    _, metadata = tensor_files.read_model(runs.resolve_model(name))
    data = load(name).config.data
    assert (data.root, data.download) == ("data", True)
    assert not re.search(r"[ :\"]/\w", " ".join(metadata.values()))


def test_every_family_member_answers_the_contract(digits, tmp_path):
    model = load(digits[0])
    drawn = model.sample(3, seed=1, sampler="ddim", steps=2)
    assert drawn.shape == (3, 1, 8, 8)
    assert float(drawn.abs().max()) <= 1.0, "images are cut to the range of the levels"
    images = torch.randint(0, 17, (2, 1, 8, 8), dtype=torch.uint8)
    estimate = model.log_likelihood(images, method="elbo", evaluations=2)
    assert (len(estimate), estimate.levels, estimate.kind) == (2, 17, "lower bound")
    points = load(write(tmp_path, toy_config(tmp_path), POINTS)[0])
    assert points.dequantizer is None
    assert points.sample(5, sampler="ddim", steps=2).shape == (5, 2)
    assert points.log_density(torch.zeros(2, 2), trace="exact").log_prob.shape == (2,)
    with pytest.raises(UserError, match="use log_density"):
        points.log_likelihood(images)


def test_a_name_that_there_is_not_is_answered_with_the_nearest(digits, tmp_path):
    with pytest.raises(UserError, match=r"no such run or model file.*Did you mean 'tiny-0001'"):
        load("tiny-001", runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"absent\.ckpt: there is no such checkpoint"):
        load(tmp_path / "absent.ckpt")


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(digits, name, share):
    path = digits[0] / name
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{path.name}.*cut short or corrupt"):
        load(path)


def test_weights_of_another_shape_are_named(digits, tmp_path):
    run, weights = digits
    wider = dump_config(digits_config(tmp_path, "network.base_channels=8"))
    metadata = {FACTS: DIGITS.to_json()}
    tensor_files.save_model(run / runs.MODEL, weights, wider, metadata)
    with pytest.raises(UserError, match=r"weight 'network\.\S+' has shape .*; its configuration needs"):
        load(run)
    name = next(iter(weights))
    config = dump_config(digits_config(tmp_path))
    tensor_files.save_model(run / runs.MODEL, {k: v for k, v in weights.items() if k != name}, config, metadata)
    with pytest.raises(UserError, match=f"has no weight '{name}'"):
        load(run)
    tensor_files.save_model(run / runs.MODEL, {**weights, "network.extra": torch.zeros(1)}, config, metadata)
    with pytest.raises(UserError, match=r"holds a weight 'network\.extra'"):
        load(run)


def test_a_file_that_does_not_say_its_data_is_refused(tmp_path):
    run, _ = write(tmp_path, digits_config(tmp_path), DIGITS, **{FACTS: None})
    with pytest.raises(UserError, match="does not say what data"):
        load(run)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="holds no model"):
        load(tmp_path / "foreign.ckpt")


def test_a_configuration_of_a_later_version_is_refused_by_key(digits):
    run, weights = digits
    tensor_files.save_model(
        run / runs.MODEL, weights, "network: {name: unet, width_of_mind: 3}\n", {FACTS: DIGITS.to_json()}
    )
    with pytest.raises(UserError, match=r"unknown key 'network\.width_of_mind' in .*model\.safetensors"):
        load(run)


def test_the_facts_survive_the_file():
    assert DataFacts.from_json(DIGITS.to_json()) == DIGITS
    assert DataFacts.from_json(POINTS.to_json()) == POINTS
    assert json.loads(DIGITS.to_json())["levels"] == 17


def test_moving_a_model_returns_it(digits):
    model = load(digits[0])
    assert model.to("cpu") is model
    assert isinstance(model, DiffusionModel)
    assert parameter_count(model.denoiser) == sum(p.numel() for p in model.denoiser.parameters())
