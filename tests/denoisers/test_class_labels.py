"""Classes by the names that the model file keeps, from Python and from sample.py."""

import pytest
import torch
from tiny_configs import digits_config

import diffusion
from diffusion.commands.app import command, sample
from diffusion.config import dump_config
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import FACTS
from diffusion.storage.tensor_files import save_model


def test_a_class_is_drawn_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = digits_config(tmp_path, "denoiser.conditional=true")
    facts = DataFacts("folder", (1, 8, 8), 256, 2, {"classes": "cat, dog"})
    torch.manual_seed(0)
    state = build_denoiser(config, facts).state_dict()
    save_model("pets.safetensors", state, dump_config(config), {FACTS: facts.to_json()})
    model = diffusion.load("pets.safetensors")
    settings = {"sampler": "ddim", "steps": 2}
    for by_name, by_number in (("dog", 1), (["cat", "dog"], [0, 1]), (["dog", 0], [1, 0])):
        assert torch.equal(model.sample(2, label=by_name, **settings), model.sample(2, label=by_number, **settings))
    for wrong in ("dgo", 2, [0, 2], -1):
        with pytest.raises(UserError, match="the model has the classes 0 cat, 1 dog"):
            model.sample(2, label=wrong, **settings)

    line = ["--run", "pets.safetensors", "--n", "2", "--steps", "2", "--sampler", "ddim", "--device", "cpu", "--label"]
    assert command(sample, [*line, "dog", "--out", "a.png"]) == 0
    assert command(sample, [*line, "1", "--out", "b.png"]) == 0
    assert "class 1: dog" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert command(sample, [*line, "2"]) == 2
    assert "label: found 2; the model has the classes 0 cat, 1 dog" in capsys.readouterr().err
