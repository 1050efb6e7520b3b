"""The report of benchmarks/gpu.py, on whatever machine: its parts, and figures that follow from one another."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu

from diffusion.config import load_config
from diffusion.devices import choose_device
from diffusion.models.build import build_data

SMALL = ("network.base_channels=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1")
COMMON = ("--config", "digits", "--batches", "8", "--sampling", "1", "2", "--images", "2", "--steps", "2", *SMALL)


def test_speeds_without_a_training_run(tmp_path, capsys):
    assert gpu.main([*COMMON, "--minutes", "0", "--out", str(tmp_path), "device=cpu"]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report) == ["Machine", "Training", "Sampling", "Likelihood"]
    (training,) = report["Training"]
    assert training["batch"] == 8
    assert training["TFLOP/s"] == pytest.approx(
        3e-3 * training["GFLOP an image, forward"] * training["images/s"], abs=1e-3
    )
    assert [row["batch"] for row in report["Sampling"]] == [1, 2]
    assert {row["NFE"] for row in report["Sampling"]} == {20}
    assert [row["images"] for row in report["Likelihood"]] == [2, 2]
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {part}\n" in text for part in report)
    assert "too little for a training run" in capsys.readouterr().out


def test_operations_of_a_network_of_known_size():
    """One level of one block, and two blocks with attention between them in the middle."""
    config = load_config("digits", SMALL)
    pixels, width, features, embedding = 64, 8, 1 + 2 * 2, 32  # x, and sines and cosines of two frequencies

    def convolution(inputs, outputs, side=3):
        return 2 * pixels * inputs * outputs * side**2

    blocks = 3 * 2 * convolution(width, width)
    up = 2 * (convolution(2 * width, width) + convolution(width, width) + convolution(2 * width, width, 1))
    ends = convolution(features, width) + convolution(width, 1)
    attention = 4 * convolution(width, width, 1) + 2 * 2 * pixels * pixels * width
    noise_level = 2 * embedding * (width + embedding + 5 * width)  # its embedding, and a bias in each of five blocks
    found = gpu.operations(config, build_data(config), choose_device("cpu"))
    assert found == blocks + up + ends + attention + noise_level


@pytest.mark.slow
def test_with_a_training_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "MARGIN_SECONDS", 0.0)
    assert gpu.main([*COMMON, "--minutes", "0.7", "--out", str(tmp_path), "device=cpu", "trainer.batch_size=8"]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["step"] for row in report["Curve"]][-1] <= report["Trained"][0]["steps"]
    assert report["Curve"][-1]["validation loss"] < report["Curve"][0]["validation loss"]
    assert (tmp_path / "samples.png").stat().st_size > 1000
