"""Checkpoints as known trainers write them: the averaged weights are found, under the names of the network."""

import codecs

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from diffusion import read_weights
from diffusion.errors import UserError

NET = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
LIVE = NET.state_dict()
AVERAGE = {name: value + 1 if value.is_floating_point() else value for name, value in LIVE.items()}
PARAMETERS = [AVERAGE[name] for name, _ in NET.named_parameters()]
# the average of the parameters alone, whose buffers are those of the weights
OF_PARAMETERS = LIVE | {name: AVERAGE[name] for name, _ in NET.named_parameters()}
COUNTS = {"initted": torch.tensor(True), "step": torch.tensor(3)}


def behind(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def without_dots(weights):
    return {f"diffusion_model.{name}".replace(".", ""): value for name, value in weights.items()}


LITEMA = behind("model_ema.", without_dots({name: AVERAGE[name] for name, _ in NET.named_parameters()}))
WITH_ATTENTION = {"conv_in.weight": LIVE["0.weight"], "ema_attn.weight": LIVE["2.weight"], "out.bias": LIVE["0.bias"]}
CASES = {
    "ema_pytorch, next to the model": (
        {
            "model": behind("model.", LIVE),
            "ema": behind("online_model.", LIVE) | behind("ema_model.", AVERAGE) | COUNTS,
        },
        AVERAGE,
    ),
    "ema_pytorch": ({"model": behind("model.", LIVE), "ema": behind("ema_model.", AVERAGE) | COUNTS}, AVERAGE),
    "AveragedModel": (AveragedModel(NET).state_dict(), LIVE),
    "AveragedModel, next to the model": (
        {"model": LIVE, "ema": behind("module.", AVERAGE) | {"n_averaged": torch.tensor(2)}},
        AVERAGE,
    ),
    "latent-diffusion": (
        {"state_dict": behind("model.diffusion_model.", LIVE) | LITEMA | {"model_ema.decay": torch.tensor(0.9)}},
        OF_PARAMETERS,
    ),
    "params_ema": ({"params": LIVE, "params_ema": AVERAGE}, AVERAGE),
    "ema_state": ({"model_state": LIVE, "ema_state": AVERAGE}, AVERAGE),
    "EMA": ({"state_dict": LIVE, "EMA": AVERAGE}, AVERAGE),
    "of a callback": ({"state_dict": LIVE, "callbacks": {"EMA": {"ema_weights": AVERAGE}}}, AVERAGE),
    "a list": ({"model": LIVE, "ema": PARAMETERS}, OF_PARAMETERS),
    "counts alone": ({"model": LIVE, "ema": {"decay": torch.tensor(0.9), "step": torch.tensor(3)}}, LIVE),
    "a parameter named as a count": (LIVE | {"step": torch.tensor(3)}, LIVE | {"step": torch.tensor(3)}),
    "weights that say that they are no average": ({"model_no_ema": LIVE, "model_ema": AVERAGE}, AVERAGE),
    "a network with a part of such a name": ({"state_dict": WITH_ATTENTION}, WITH_ATTENTION),
    "no average, but part of a word": ({"model": LIVE, "schema": AVERAGE}, LIVE),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_weights_of_a_trainer(tmp_path, kind):
    content, expected = CASES[kind]
    torch.save(content, tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_a_file_is_shows_from_its_content(tmp_path):
    save_file(LIVE, tmp_path / "x.bin")
    assert all(torch.equal(value, LIVE[name]) for name, value in read_weights(tmp_path / "x.bin").items())
    (tmp_path / "y.bin").write_bytes(codecs.BOM_UTF8 + b"<!DOCTYPE html><html>")
    with pytest.raises(UserError, match="is a web page"):
        read_weights(tmp_path / "y.bin")
