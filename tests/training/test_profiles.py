"""Averages that follow a power of time: their mean in closed form, their width, and those made after training."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from terminal_width import next_words
from tiny_configs import toy_config
from torch import nn

import diffusion
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.errors import UserError
from diffusion.storage import tensor_files
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.training.ema import Average, exponent, overlap, reconstruction
from diffusion.training.fit import fit


def profile(end, gamma):
    return lambda t: (gamma + 1) * t**gamma / end ** (gamma + 1) if t <= end else 0.0


@pytest.mark.quick
@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.285])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    density = profile(1.0, exponent(width))
    mean, square = (quad(lambda t, power=power: t**power * density(t), 0, 1)[0] for power in (1, 2))
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-5)


@pytest.mark.quick
def test_the_gammas_of_the_paper():
    """Karras et al. 2024, sec. 3.1: widths 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for wrong in (0.3, 0.0, -1, float("nan")):
        with pytest.raises(UserError, match="width"):
            exponent(wrong)


@pytest.mark.quick
def test_products_of_profiles_are_their_integrals():
    for a, b in itertools.product([(1.0, 3.0), (0.6, 17.0), (0.9, 0.5)], repeat=2):
        product = quad(lambda t, a=a, b=b: profile(*a)(t) * profile(*b)(t), 0, min(a[0], b[0]))[0]
        assert overlap(a, b) == pytest.approx(product, rel=1e-7)


@pytest.mark.quick
@pytest.mark.parametrize("power", [1.0, 2.5])
@pytest.mark.parametrize("width", [0.05, 0.2])
def test_on_weights_that_move_as_a_power_of_time_the_mean_is_known(power, width):
    """t^a (gamma + 1) / (gamma + 1 + a) in the limit of short steps; of n steps, the sum over intervals exactly."""
    module = nn.Linear(1, 1, bias=False).double()
    average, gamma, n = Average(module, width=width), exponent(width), 400
    for step in range(1, n + 1):
        with torch.no_grad():
            module.weight.fill_(step**power)
        average.update(32)
    found = float(average.weights()["weight"])
    ends = (np.arange(n + 1) / n) ** (gamma + 1)
    assert found == pytest.approx(float(np.diff(ends) @ np.arange(1, n + 1) ** power), rel=1e-10)
    assert found == pytest.approx(n**power * (gamma + 1) / (gamma + 1 + power), rel=2 * power / n)


def walk(steps=600, size=20, seed=0):
    """A path of weights: a random walk from 0, in which every past step can be told from every other."""
    return torch.randn(steps, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(0)


@pytest.mark.quick
def test_a_width_chosen_afterwards_is_the_one_that_was_tracked():
    path, wanted = walk(), (0.06, 0.12, 0.15)
    module = nn.Linear(20, 1, bias=False).double()
    tracked = {width: Average(module, width=width) for width in (0.05, 0.1, *wanted)}
    kept, values = [], []
    for step, weights in enumerate(path, 1):
        with torch.no_grad():
            module.weight.copy_(weights[None])
        for average in tracked.values():
            average.update(8)
        if step % 25 == 0:
            kept += [(8.0 * step, exponent(width)) for width in (0.05, 0.1)]
            values += [tracked[width].weights()["weight"].clone() for width in (0.05, 0.1)]
    for width in wanted:
        factors, error = reconstruction(kept, (8.0 * len(path), exponent(width)))
        made = sum(factor * value for factor, value in zip(factors, values, strict=True))
        direct = tracked[width].weights()["weight"]
        others = min(float((tracked[other].weights()["weight"] - direct).norm()) for other in (0.05, 0.1))
        assert sum(factors) == pytest.approx(1.0, abs=1e-9)
        assert error < 0.02
        assert float((made - direct).norm()) < 0.03 * others  # far nearer than what was tracked
    # a tracked one is found again, and weights that stand still are kept
    factors, error = reconstruction(kept, kept[-1])
    assert error < 1e-6
    assert factors[-1] == pytest.approx(1.0, abs=1e-5)


def config_of(folder, *more):
    settings = ("trainer.steps=12", "optimizer.decay=constant", "ema.widths=[0.05, 0.1]", "ema.snapshots=6")
    return toy_config(folder, *settings, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """That of a run of twelve steps."""
    model = diffusion.train(config_of(tmp_path_factory.mktemp("profiles")), resume="never")
    return Path(model.source).parent


def test_a_run_that_went_on_has_the_averages_of_one_that_did_not_stop(folder, tmp_path):
    run = fit(config_of(tmp_path, "trainer.steps=6")).run
    fit(config_of(tmp_path), run)
    whole, resumed = (read_checkpoint(of / "checkpoints" / "last.ckpt")["profile_averages"] for of in (folder, run))
    assert [state["images_seen"] for state in resumed] == [96, 96]
    for a, b in zip(whole, resumed, strict=True):
        assert all(torch.equal(a["averages"][0][name], value) for name, value in b["averages"][0].items())
    with pytest.raises(UserError, match=r"ema\.width: 0\.2 found, but the checkpoint was trained with 0\.1"):
        fit(config_of(tmp_path, "ema.widths=[0.05, 0.2]"), run)


def test_a_model_of_any_width_from_a_run(folder, tmp_path, capsys):
    assert len(list((folder / "averages").glob("*.safetensors"))) == 6
    out = tmp_path / "wide.safetensors"
    assert command(main, ["average", str(folder), "--width", "0.12", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "from 6 snapshots of widths 0.05, 0.1" in said
    assert next_words(said) == ["evaluate", str(out)]
    made = diffusion.load(out)
    assert made.step == 12
    assert json.loads(tensor_files.read_model(out)[1]["average"])["width"] == 0.12
    assert diffusion.sample(made, 2, seed=0).isfinite().all()
    # one of a tracked width is that average at the last step, within float32
    again = tmp_path / "tracked.safetensors"
    assert command(main, ["average", str(folder), "--width", "0.05", "--out", str(again)]) == 0
    last = sorted((folder / "averages").glob("*.safetensors"))[-1]
    tracked = {n[5:]: t for n, t in tensor_files.read(last, "snapshot", "averages")[0].items() if n.startswith("0.05/")}
    for name, value in diffusion.load(again).module.state_dict().items():
        torch.testing.assert_close(value, tracked[name], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_averaged_is_said_in_a_line(folder, tmp_path, capsys):
    for arguments, said in (
        ([str(folder), "--width", "0.4"], "--width: found 0.4; must be below 0.2887"),
        (["pretrained:digits", "--width", "0.1"], "has no snapshots of averages"),
        ([str(folder), "--width", "0.1", "--out", str(folder / "model.safetensors")], "is there already"),
    ):
        assert command(main, ["average", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match=r"ema\.widths: found \[0.1\]; must be two or more"):
        toy_config(tmp_path, "ema.widths=[0.1]")
